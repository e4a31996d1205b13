"""LSLR: a learned rate per layer and step, from MAML++."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fastmaml.rules.base import Rule, State, Tensors, require_rate


@final
@dataclass(frozen=True)
class LSLR(Rule):
    """θ' = θ − α[layer, step]·g with α meta-learned (Antoniou et al., 2019, section 4).

    A "layer" is one parameter tensor. Steps beyond those that were learned (more adaptation at
    test time) use the last step's rates.

    Args:
        lr: what every rate starts from. Learned are ``[steps]`` numbers for each tensor.

    Raises:
        ValueError: a rate that is negative or not finite.
    """

    lr: float
    linear: ClassVar[bool] = True
    proximal: ClassVar[float | None] = 0.0
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_rate("LSLR", self.lr)

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """A tensor ``[steps]`` for each adapted parameter, filled with `lr`."""
        return {
            name: torch.full((max(steps, 1),), float(self.lr), dtype=p.dtype, device=p.device)
            for name, p in parameters.items()
        }

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """−α[step]·g, and no state."""
        return {
            name: -rates[name][min(step, rates[name].shape[0] - 1)] * g
            for name, g in gradients.items()
        }, state

    def scaling(
        self, step: int, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, float] | None:
        """The rates α[step] of this step, and the factor −1."""
        return {n: rates[n][min(step, len(rates[n]) - 1)] for n in parameters}, -1.0
