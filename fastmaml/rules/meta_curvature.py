"""Meta-Curvature: a learned matrix for every dimension of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fastmaml.rules.base import Rule, State, Tensors, require_rate


@final
@dataclass(frozen=True)
class MetaCurvature(Rule):
    """θ' = θ − lr·MC(g) with MC meta-learned (Park and Oliva, 2019, section 3: their MC2).

    A matrix ``[n, m]`` G becomes M_n·G·M_m, with one learned matrix for each of its dimensions, and
    a bias is multiplied element by element. Of a convolution's weight ``[out, in, ...]`` the output
    channels, the input channels and the positions together have a matrix each. All begin as the
    identity, which is gradient descent.

    Learns n² + m² numbers for a matrix of n·m, and its update costs two products with them. Not for
    embeddings, whose n² is beyond any memory: leave them out with ``scope=``, or take `LSLR`.
    The paper's setting: lr = 0.1 with 1 step for Omniglot, 0.01 with 5 steps for miniImageNet.

    Args:
        lr: a constant factor; its use is that the matrices can begin as the identity.

    Raises:
        ValueError: a rate that is negative or not finite.
    """

    lr: float
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_rate("MetaCurvature", self.lr)

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """The matrices of each adapted parameter, ``name.0``, ``name.1``, ``name.2``."""
        return {
            f"{name}.{i}": matrix
            for name, p in parameters.items()
            for i, matrix in enumerate(identities(p))
        }

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The update −lr·MC(g) of each parameter, and no state."""
        return {
            name: -self.lr
            * along_modes(g, [rates[f"{name}.{i}"] for i in range(modes(g.ndim - 1))])
            for name, g in gradients.items()
        }, state


def modes(ndim: int) -> int:
    """How many matrices a parameter of so many dimensions has; up to one dimension, its factors."""
    return min(max(ndim, 1), 3)


def identities(p: Tensor) -> list[Tensor]:
    """What leaves a gradient like `p` as it is: ones like it, or a matrix for each mode."""
    if p.ndim < 2:
        return [torch.ones_like(p)]
    sizes = [*p.shape[:2], *([p[0, 0].numel()] if p.ndim > 2 else [])]
    return [torch.eye(n, dtype=p.dtype, device=p.device) for n in sizes]


def along_modes(g: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each matrix along its mode of `g`, ``[tasks, *shape]``.

    Args:
        g: gradients.
        matrices: as `identities` makes them. The first multiplies from the left, the second from
            the right, and the third all positions as a vector.
    """
    if len(matrices) == 1:
        return matrices[0] * g
    if len(matrices) == 2:
        return matrices[0] @ g @ matrices[1]
    by_position = torch.einsum("pq,tabq->tpab", matrices[2], g.flatten(3))
    update = matrices[0] @ by_position @ matrices[1]
    return update.permute(0, 2, 3, 1).reshape(g.shape)
