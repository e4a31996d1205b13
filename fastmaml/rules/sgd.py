"""Gradient descent, as in MAML (Finn et al., 2017, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fastmaml.rules.base import State, Tensors, WithRate


@final
@dataclass(frozen=True)
class SGD(WithRate):
    """θ' = θ − lr·g, as in MAML (Finn et al., 2017). Carries nothing from step to step.

    Args:
        lr: the inner learning rate; a scalar `nn.Parameter` is meta-learned.

    Raises:
        ValueError: a rate that is negative, not finite, or a tensor that is no scalar parameter.
    """

    linear: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    proximal: ClassVar[float | None] = 0.0

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The update −lr·g of each parameter, and no state."""
        lr = self.rate(rates)
        return {name: -lr * g for name, g in gradients.items()}, state

    def scaling(
        self, step: int, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, float] | None:
        """The learned rate, if there is one, and the factor −lr or −1."""
        return self.factor(parameters, rates)
