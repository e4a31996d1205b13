"""What the tests of `fastmaml.bench` measure: a small learner, and how little of a measurement."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import fastmaml as fm

LR = 0.3
QUICK: dict[str, Any] = {"repeats": 2, "seconds": 0.01}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def episodes(tasks: int = 3, seed: int = 1) -> fm.Episodes:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tasks, 6, 3, dtype=torch.float64, generator=make)
    y = torch.randn(2, tasks, 6, 2, dtype=torch.float64, generator=make)
    return fm.Episodes(fm.Batch(x[0], y[0]), fm.Batch(x[1], y[1]))


def learner(**options: Any) -> fm.MAML:
    settings = {"lr": LR, "loss": F.mse_loss, "executor": "eager", **options}
    return fm.MAML(model(), **settings)
