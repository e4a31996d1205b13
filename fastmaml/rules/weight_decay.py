"""L2 weight decay inside the inner loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fastmaml.rules.base import Rule, State, Tensors, require_at_least_zero


@final
@dataclass(frozen=True)
class WeightDecay(Rule):
    """g + coefficient·θ, the gradient of an added coefficient/2·‖θ‖².

    For the decoupled kind use `AdamW`.

    Args:
        coefficient: how strongly parameters are drawn to zero.

    Raises:
        ValueError: a coefficient that is negative or not finite.
    """

    coefficient: float
    moves: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    feeds_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least_zero("WeightDecay", "coefficient", self.coefficient)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The gradient with the decay added, and no state."""
        return {n: g + self.coefficient * parameters[n] for n, g in gradients.items()}, state
