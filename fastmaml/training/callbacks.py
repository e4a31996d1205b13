"""`Callback`: what is told how a run goes, and may end it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmaml.training.outer_loop import OuterLoop
    from fastmaml.training.summary import Evaluation


class Callback(ABC):  # noqa: B024  # each of its methods may be left
    """Is told how a run goes: make a class of it with the methods that you need.

    A method may call ``trainer.stop()``: the run then ends after that iteration, as if it had been
    the last. What a method raises ends the run, too, without a checkpoint. Where several processes
    train together, each has its own; ``trainer.ranks.first`` is true in the one that writes.

    Examples:
        >>> class Enough(fm.training.callbacks.Callback):
        ...     def on_iteration(self, trainer, line):
        ...         if line["loss"] < 0.1:
        ...             trainer.stop()
    """

    def on_start(self, trainer: OuterLoop) -> None:  # noqa: B027
        """Before the first iteration of this process.

        Args:
            trainer: has ``config``, ``folder``, ``maml``, ``optimizer`` and ``iteration``.
        """

    def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:  # noqa: B027
        """After every iteration, before it is validated.

        Args:
            trainer: as above.
            line: of ``metrics.jsonl``: iteration, seconds, loss, accuracy, gradient_norm, lr.
        """

    def on_validation(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:  # noqa: B027
        """After every validation, that before the first iteration, too.

        Args:
            trainer: as above.
            line: the same, with ``validation``: see `Evaluation.as_dict`.
        """

    def on_end(self, trainer: OuterLoop, found: Evaluation | None) -> None:  # noqa: B027
        """When the run ends, however it does.

        Args:
            trainer: as above.
            found: what `fit` returns; None where a signal or an error ended it.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on after a resumption: numbers, strings, tensors, dicts and lists."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from there; not called where the checkpoint knows nothing of it.

        Args:
            state: what `state_dict` gave.
        """
