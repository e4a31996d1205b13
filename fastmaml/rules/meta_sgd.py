"""Meta-SGD: a learned rate for every element of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fastmaml.rules.base import Rule, State, Tensors, require_rate


@final
@dataclass(frozen=True)
class MetaSGD(Rule):
    """θ' = θ − α∘g with α meta-learned (Li et al., 2017, eq. 2), one rate an element.

    Doubles the number of meta-parameters. Rates are free to become negative, as in the paper.

    Args:
        lr: what every rate starts from.

    Raises:
        ValueError: a rate that is negative or not finite.
    """

    lr: float
    linear: ClassVar[bool] = True
    proximal: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        require_rate("MetaSGD", self.lr)

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """A tensor like each adapted parameter, filled with `lr`."""
        return {name: torch.full_like(p, float(self.lr)) for name, p in parameters.items()}

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The update −α∘g of each parameter, and no state."""
        return {name: -rates[name] * g for name, g in gradients.items()}, state

    def scaling(
        self, step: int, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, float] | None:
        """The rates α, and the factor −1."""
        return rates, -1.0
