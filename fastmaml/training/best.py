"""`Best`: which validation was the best so far, and how long ago."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, final

LOWER = frozenset({"loss"})
"""What is always measured, of which less is better."""


@final
class Best:
    """The best validation so far.

    Args:
        by: the score that decides; None for what the validation is of: accuracy, loss or return.

    Attributes:
        value: of the best one; None before the first.
        iteration: after which it was.
        waited: validations since then.
        measured_by: what the validation was of, by name, on which its value hangs.
    """

    def __init__(self, by: str | None) -> None:
        self.by = by
        self.value: float | None = None
        self.iteration, self.waited = 0, 0
        self.measured_by: dict[str, Any] = {}

    def seen(
        self,
        iteration: int,
        value: float,
        lower_is_better: bool,
        measured_by: Mapping[str, Any] | None = None,
    ) -> bool:
        """Whether this validation is better than all before; one that is no number is not.

        Args:
            iteration: iterations done.
            value: its figure.
            lower_is_better: as of a loss.
            measured_by: as the attribute.
        """
        ahead = self.value is None or (
            value < self.value if lower_is_better else value > self.value
        )
        if ahead and math.isfinite(value):
            self.value, self.iteration, self.waited = value, iteration, 0
            self.measured_by = dict(measured_by or {})
            return True
        self.waited += 1
        return False

    def measured(self, value: float, measured_by: Mapping[str, Any]) -> None:
        """Its weights were validated anew; a value that is no number is forgotten.

        Args:
            value: its figure now.
            measured_by: as the attribute.
        """
        self.value = value if math.isfinite(value) else None
        self.measured_by = dict(measured_by)

    def changes(self, measured_by: Mapping[str, Any]) -> list[str]:
        """In what validations differ from that of the best one, as far as both are known."""
        found = []
        for name, then in self.measured_by.items():
            now = measured_by.get(name, then)
            if now != then and None not in (now, then):
                shown = isinstance(now, int)
                found.append(f"{name} is {now} now and was {then}" if shown else f"{name} changed")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return {
            "value": self.value,
            "iteration": self.iteration,
            "waited": self.waited,
            "measured_by": self.measured_by,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.value, self.iteration = state["value"], state["iteration"]
        self.waited = state["waited"]
        self.measured_by = dict(state.get("measured_by", {}))


def figure(
    validation: Mapping[str, Any], by: str | None, lower: Collection[str] = LOWER
) -> tuple[float, bool]:
    """What decides in a validation, and whether less of it is better.

    Args:
        validation: as `Evaluation.as_dict` gives it.
        by: the name of a score; None for what the validation is of.
        lower: the names of which less is better.

    Raises:
        ValueError: there is no such score.
    """
    main = next(name for name in ("accuracy", "return", "loss") if name in validation)
    scores = validation.get("scores", {})
    if by is None or by == main:
        return validation[main], main in lower
    if by not in scores:
        there = ", ".join(dict.fromkeys([main, *scores]))
        raise ValueError(
            f"best_by={by!r}: validations have {there}. Give one of these, or measure it, too "
            f"(metrics={by!r})."
        )
    return scores[by][by], by in lower
