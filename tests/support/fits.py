"""What the tests of the tools around fastmaml share: a problem, and its gradient by hand."""

from __future__ import annotations

from typing import Any

import torch
from hand_loop import hand_loop
from problems import relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

TASKS, LR, STEPS = 6, 0.5, 2


class Classifier(nn.Module):
    """Four ways; `unused` is a layer that no loss reaches."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
        self.unused = nn.Linear(2, 2) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def classifier(dtype: torch.dtype = torch.float64, unused: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Classifier(unused).to(dtype)


def make(model: nn.Module | None = None, **options: Any) -> fm.MAML:
    options = {"lr": LR, "steps": STEPS, "loss": F.cross_entropy, **options}
    return fm.MAML(classifier() if model is None else model, **options)


def episodes() -> fm.Episodes:
    labels = torch.arange(4).repeat(TASKS, 2)
    return fm.Episodes(*(fm.Batch(tensor(TASKS, 8, 3, seed=s), labels) for s in (1, 2)))


def gradients(module: nn.Module) -> Tensor:
    """Of all parameters that have one, as one vector."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def by_hand(model: nn.Module | None = None, data: fm.Episodes | None = None) -> Tensor:
    """The meta-gradient of one plain process, one task after another."""
    model = classifier() if model is None else model
    data = episodes() if data is None else data
    return torch.cat(
        [g.flatten() for g in hand_loop(model, F.cross_entropy, data, LR, STEPS)[1].values()]
    )


def assert_exact(found: Tensor, expected: Tensor) -> None:
    assert relative(found, expected) < 1e-12
