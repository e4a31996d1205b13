"""A pull back to where the inner loop began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fastmaml.rules.base import Rule, State, Tensors, require_at_least_zero, zeros_like


@final
@dataclass(frozen=True)
class Proximal(Rule):
    """g + strength·(θ − θ_0), the gradient of an added strength/2·‖θ − θ_0‖².

    θ_0 is where the task began, so that the inner loop minimises the loss near its start, as in
    iMAML (Rajeswaran et al., 2019, eq. 3) and in biased regularisation. It comes first in a chain,
    before rules that clip: ``chain(Proximal(2.0), SGD(0.1))``. `gradients.Implicit` needs it; every
    other method differentiates through it as well. Carries one copy of what adapts. With an inner
    rate `lr` it is stable where lr·(strength + curvature) is below 2.

    Args:
        strength: λ of the paper, which takes 2.0 for Omniglot and 0.5 for miniImageNet.

    Raises:
        ValueError: a strength that is negative or not finite.
    """

    strength: float
    moves: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least_zero("Proximal", "strength", self.strength)

    @property
    def proximal(self) -> float:  # type: ignore[override]  # it is a field
        """Its strength."""
        return float(self.strength)

    def init(self, parameters: Tensors) -> State:
        """Zeros; the first step puts where the task began in their place."""
        return zeros_like(parameters)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The gradient with the pull added, and where the task began."""
        start = parameters if step == 0 else state
        return {
            n: g + self.strength * (parameters[n] - start[n]) for n, g in gradients.items()
        }, dict(start)
