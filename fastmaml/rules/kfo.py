"""KFO: a learned linear map of gradients whose matrix is a Kronecker product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fastmaml.rules.base import Rule, State, Tensors, require_rate


@final
@dataclass(frozen=True)
class KFO(Rule):
    """θ' = θ − lr·L·G·R with L and R meta-learned for each parameter (Arnold et al., 2021).

    It is the linear form of the paper's meta-optimizer (section 4), whose matrix over all elements
    of G is Rᵀ ⊗ L. A weight ``[n, m]`` is taken as it is, a bias ``[n]`` as ``[n, 1]``, and a
    convolution's ``[out, in, ...]`` as `out` matrices ``[in, positions]`` that share L and R. Both
    begin as the identity, which is gradient descent. Learns n² + m² numbers for n·m; not for
    embeddings, as `MetaCurvature`. It is learn2learn's `KroneckerTransform` of `KroneckerLinear`,
    with its defaults.

    Args:
        lr: a constant factor.
        psd: use LᵀL and RᵀR, so that no update goes uphill on a quadratic bowl.

    Raises:
        ValueError: a rate that is negative or not finite, or psd no bool.
    """

    lr: float
    psd: bool = True
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_rate("KFO", self.lr)
        if not isinstance(self.psd, bool):
            raise ValueError(f"KFO(psd={self.psd!r}): give True or False.")

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """L and R of each adapted parameter, ``name.left`` and ``name.right``."""
        return {
            f"{name}.{side}": torch.eye(n, dtype=p.dtype, device=p.device)
            for name, p in parameters.items()
            for side, n in zip(("left", "right"), factor_sizes(p.shape), strict=True)
        }

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The update −lr·L·G·R of each parameter, and no state."""
        found = {}
        for name, g in gradients.items():
            left, right = rates[f"{name}.left"], rates[f"{name}.right"]
            if self.psd:
                left, right = left.mT @ left, right.mT @ right
            matrices = g.reshape(len(g), -1, *factor_sizes(g.shape[1:]))
            found[name] = -self.lr * (left @ matrices @ right).reshape(g.shape)
        return found, state


def factor_sizes(shape: Sequence[int]) -> tuple[int, int]:
    """n and m of the matrices as which a parameter of this shape is taken."""
    if len(shape) < 2:
        return math.prod(shape), 1
    if len(shape) == 2:
        return shape[0], shape[1]
    return shape[1], math.prod(shape[2:])
