"""A script of learn2learn's users, and what it learns from."""

from __future__ import annotations

from typing import Any

import torch
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

LR = 0.3


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def episodes() -> fm.Episodes:
    x, q = tensor(3, 5, 3, seed=1), tensor(3, 4, 3, seed=2)
    return fm.Episodes(fm.Batch(x, x[..., :2].sin()), fm.Batch(q, q[..., :2].cos()))


def script(meta: nn.Module, steps: int = 2, **adapt: Any) -> Tensor:
    """The loop of a script: the mean query loss, with its graph."""
    losses = []
    for task in episodes():
        learner = meta.clone()
        for _ in range(steps):
            result = learner.adapt(
                F.mse_loss(learner(task.support.inputs[0]), task.support.targets[0]), **adapt
            )
            assert result is None
        losses.append(F.mse_loss(learner(task.query.inputs[0]), task.query.targets[0]))
    return torch.stack(losses).mean()


def gradient(meta: nn.Module, loss: Tensor) -> Tensor:
    meta.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in meta.parameters() if p.grad is not None])
