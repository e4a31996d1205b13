"""A potential whose derivatives a model takes itself, and the plain loop's numbers for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hand_loop import hand_loop
from problems import tensor
from torch import Tensor, nn

import fastmaml as fm

LR, STEPS = 0.3, 2


class Field(nn.Module):
    """A potential u(x), and what `function` makes of it and of its derivatives."""

    def __init__(self, function: Callable[[Field, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.scale = nn.Parameter(tensor(1, seed=9))
        self.function = function

    def u(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean() + output.sin().mean()


def episodes(seed: int = 1) -> fm.Episodes:
    support, query = (
        fm.Batch(tensor(3, 4, 2, seed=s), tensor(3, 4, 1, seed=s + 1)) for s in (seed, seed + 2)
    )
    return fm.Episodes(support, query)


def learner(model: nn.Module, **options: Any) -> fm.MAML:
    return fm.MAML(model, LR, steps=STEPS, **{"loss": loss, **options})


def by_hand(
    model: nn.Module, given: Any = loss, first_order: bool = False
) -> tuple[Tensor, Tensor]:
    value, gradient = hand_loop(model, given, episodes(), LR, STEPS, first_order)
    return value, torch.cat([g.flatten() for g in gradient.values()])
