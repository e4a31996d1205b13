"""Tasks whose loss is a quadratic bowl: inner loops and minima are known in closed form."""

from __future__ import annotations

import torch
from problems import tensor
from torch import Tensor, nn

import fastmaml as fm


class Quadratic(nn.Module):
    """Half of (θ - a)ᵀ A (θ - a) for a task's A and a, through any loss that just returns it."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, a: Tensor, matrix: Tensor) -> Tensor:
        # a: [1, n]; matrix: [1, n, n]: the "examples" dimension holds one example
        d = self.theta - a[0]
        return 0.5 * d @ matrix[0] @ d


def quadratic_episodes(tasks: int, n: int) -> fm.Episodes:
    def batch(seed: int) -> fm.Batch:
        root = tensor(tasks, 1, n, n, seed=seed)
        matrix = root @ root.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
        return fm.Batch((tensor(tasks, 1, n, seed=seed + 1), matrix), torch.zeros(tasks, 1))

    return fm.Episodes(batch(3), batch(5))
