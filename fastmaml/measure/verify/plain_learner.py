"""`PlainLearner`: what a per-task function is given in a plain loop over the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

from torch import Tensor, nn

from fastmaml.engine.model.inventory import take_inventory
from fastmaml.engine.routing.called_by_hand import attribute
from fastmaml.maml import MAML
from fastmaml.maml.plan import meta_of


@final
class PlainLearner:
    """A clone of a `MAML` with the names that a per-task function's learner has.

    Those of a `MAML` itself are others: its `head` is a setting, where a function means its model's
    layer, and its parameters are all of the model's and the rates, not what adapts.

    Args:
        clone: of one task.
    """

    def __init__(self, clone: MAML) -> None:
        self._clone = clone

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The model's output with the parameters as they are by now."""
        return self._clone(*inputs, **named)

    forward = __call__

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One inner step; what the loss does not reach, and what is frozen, always stays."""
        self._clone.adapt(loss, first_order)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> PlainLearner:
        """A learner that goes on from here."""
        return PlainLearner(self._clone.clone(first_order))

    def train(self, mode: bool = True) -> PlainLearner:
        """This one, as it is in that mode: what ran before has seen to it."""
        return self

    def eval(self) -> PlainLearner:
        """The same."""
        return self

    def parameters(self) -> Iterator[Tensor]:
        """What adapts, as it is by now."""
        return (p for _, p in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The same with their names in the model."""
        module = self.module
        return iter(meta_of(self._clone, take_inventory(module)).adapted.items())

    @property
    def module(self) -> nn.Module:
        """The model with this task's parameters."""
        return self._clone.module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_clone" not in self.__dict__:
            raise AttributeError(name)
        return attribute(self._clone.module, name, self._clone._called)
