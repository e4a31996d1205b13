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
    """

    def __init__(self, by: str | None) -> None:
        self.by = by
        self.value: float | None = None
        self.iteration, self.waited = 0, 0

    def seen(self, iteration: int, value: float, lower_is_better: bool) -> bool:
        """Whether this validation is better than all before; one that is no number is not.

        Args:
            iteration: iterations done.
            value: its figure.
            lower_is_better: as of a loss.
        """
        ahead = self.value is None or (
            value < self.value if lower_is_better else value > self.value
        )
        if ahead and math.isfinite(value):
            self.value, self.iteration, self.waited = value, iteration, 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return {"value": self.value, "iteration": self.iteration, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.value, self.iteration = state["value"], state["iteration"]
        self.waited = state["waited"]


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
