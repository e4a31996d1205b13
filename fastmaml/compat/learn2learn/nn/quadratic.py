"""`solve`: small quadratic programs with upper bounds and sums of zero."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-12
CENTRING = 0.1
"""How far each step lowers the complementarity that it aims at."""


def solve(matrix: Tensor, linear: Tensor, upper: Tensor, groups: int, steps: int) -> Tensor:
    """min ½ zᵀQz + pᵀz with z ≤ upper, and the sum of every group of entries zero.

    A primal-dual interior-point method (Boyd and Vandenberghe 2004, section 11.7) finds the
    solution; one Newton step on the optimality conditions at it, in which only `matrix`, `linear`
    and `upper` are not constant, has the solution's first derivatives.

    Args:
        matrix: Q, float64 ``[n, n]``, symmetric and positive definite.
        linear: p, ``[n]``.
        upper: ``[n]``, such that the sums can be zero.
        groups: how many groups of neighbouring entries there are.
        steps: at most so many.

    Returns:
        z, ``[n]``.
    """
    n = len(linear)
    sums = torch.eye(groups, dtype=matrix.dtype, device=matrix.device)
    sums = sums.repeat_interleave(n // groups, dim=1)  # A: [groups, n]
    with torch.no_grad():
        z, bound, sum_ = _interior_point(matrix, linear, upper, sums, steps)
        system = torch.zeros(2 * n + groups, 2 * n + groups, dtype=z.dtype, device=z.device)
        system[:n, :n], system[:n, n : 2 * n] = matrix, torch.eye(n).to(z)
        system[:n, 2 * n :], system[2 * n :, :n] = sums.t(), sums
        system[n : 2 * n, :n], system[n : 2 * n, n : 2 * n] = bound.diag(), (z - upper).diag()
    residual = torch.cat(
        [matrix @ z + linear + bound + sums.t() @ sum_, bound * (z - upper), sums @ z]
    )
    return z - torch.linalg.solve(system, residual)[:n]


def _interior_point(
    matrix: Tensor, linear: Tensor, upper: Tensor, sums: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The solution, and the multipliers of the bounds ``[n]`` and of the sums ``[groups]``."""
    n, groups = len(linear), len(sums)
    z = torch.zeros_like(linear)
    slack, bound = torch.ones_like(linear), torch.ones_like(linear)
    sum_ = linear.new_zeros(groups)
    corner = linear.new_zeros(groups, groups)
    for _ in range(steps):
        gap = slack @ bound / n
        dual = matrix @ z + linear + bound + sums.t() @ sum_
        primal, total = z + slack - upper, sums @ z
        if max(gap, dual.abs().max(), primal.abs().max(), total.abs().max()) < TOLERANCE:
            break
        central = slack * bound - CENTRING * gap
        # What is left of the system without the slacks and the bounds' multipliers.
        system = torch.cat(
            [
                torch.cat([matrix + (bound / slack).diag(), sums.t()], 1),
                torch.cat([sums, corner], 1),
            ]
        )
        right = torch.cat([-dual + (central - bound * primal) / slack, -total])
        step = torch.linalg.solve(system, right)
        dz, dsum = step[:n], step[n:]
        dslack = -primal - dz
        dbound = -(central + bound * dslack) / slack
        length = min(_longest(slack, dslack), _longest(bound, dbound))
        z, sum_ = z + length * dz, sum_ + length * dsum
        slack, bound = slack + length * dslack, bound + length * dbound
    return z, bound, sum_


def _longest(x: Tensor, dx: Tensor) -> float:
    """Nearly the longest step, at most 1, that keeps `x` positive."""
    shrinking = dx < 0
    return min(1.0, 0.99 * float((-x / dx)[shrinking].min())) if shrinking.any() else 1.0
