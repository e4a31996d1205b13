"""Conjugate gradients for many tasks at once, in tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastmaml.rules.base import Tensors


class Solution(NamedTuple):
    """What conjugate gradients found for each task."""

    x: Tensors
    """By name, ``[tasks, *shape]``."""
    residual: Tensor
    """``[tasks]``: |b − A·x| / |b|, by the recurrence; 0 where b is 0."""
    indefinite: Tensor
    """``[tasks]`` bool: whether a direction was met along which A is not positive."""


def conjugate_gradient(
    apply: Callable[[Tensors], Tensors], b: Tensors, iterations: int, tolerance: float
) -> Solution:
    """Solve A·x = b of every task for a symmetric A (Hestenes and Stiefel, 1952).

    No branch hangs on a number, so that it can be recorded: a task that is done goes on without
    moving. One whose A is not positive along a direction stops there, as in Steihaug (1983), at
    what it has by then, and at b if it has nothing yet. NaN stays NaN.

    Args:
        apply: A, of all tasks.
        b: by name, ``[tasks, *shape]``.
        iterations: products with A, at least 1.
        tolerance: a task is done where the residual is at most that, relative to |b|.
    """
    x = {n: torch.zeros_like(v) for n, v in b.items()}
    residual = along = b
    square = first = inner(b, b)
    indefinite = torch.zeros_like(square, dtype=torch.bool)
    for iteration in range(iterations):
        product = apply(along)
        curvature = inner(along, product)
        done = square <= tolerance**2 * first
        indefinite = indefinite | ((curvature <= 0) & ~done)
        still = done | indefinite
        length = torch.where(still, 0, square / torch.where(still, 1, curvature))
        x = {n: v + _times(length, along[n]) for n, v in x.items()}
        if iteration == 0:
            x = {n: torch.where(_like(indefinite, v), b[n], v) for n, v in x.items()}
        residual = {n: v - _times(length, product[n]) for n, v in residual.items()}
        new = inner(residual, residual)
        ratio = torch.where(still, 0, new / torch.where(still, 1, square))
        along = {n: v + _times(ratio, along[n]) for n, v in residual.items()}
        square = new
    relative = (square / torch.where(first == 0, 1, first)).sqrt()
    return Solution(x, relative, indefinite)


def inner(a: Tensors, b: Tensors) -> Tensor:
    """The inner product of each task, ``[tasks]``; complex numbers count as two real ones."""
    products = [_real(a[n] * b[n].conj()).reshape(len(a[n]), -1).sum(1) for n in a]
    return torch.stack(torch.broadcast_tensors(*_alike(products))).sum(0)


def _alike(xs: list[Tensor]) -> list[Tensor]:
    """In one dtype, the widest."""
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) for x in xs]


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _like(x: Tensor, other: Tensor) -> Tensor:
    """``[tasks]`` with as many dimensions as `other`."""
    return x.view(-1, *[1] * (other.ndim - 1))


def _times(factor: Tensor, x: Tensor) -> Tensor:
    """Each task's factor times its tensor, in the tensor's dtype."""
    return _like(factor.to(_real(x).dtype), x) * x
