"""A setting that a model's forward or a loss reads, and that changes between calls: it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from outcomes import outcome, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

Kind = tuple[Callable[[], Any], Callable[[], object]]
"""What gives the weight of the loss (1 at first), and what changes it."""


def a_change_counts(kind: Callable[[], Kind], where: str) -> None:
    """By training and by evaluation, where nothing but guards could see it."""
    weight, change = kind()
    model, loss = _reading(weight, where)
    maml = fm.MAML(model, lr=0.3, loss=loss, spot_checks=False)
    before = [_both(maml) for _ in range(2)][-1]
    change()
    fresh = fm.MAML(model, lr=0.3, loss=loss, executor="eager", backend="reference")
    found, expected = _both(maml), _both(fresh)
    assert not torch.equal(expected[1], before[1])
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


def _reading(weight: Callable[[], Any], where: str) -> tuple[nn.Module, Any]:
    class Reading(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * weight()

    torch.manual_seed(0)
    if where == "model":
        return Reading(3, 2).double(), F.mse_loss
    return nn.Linear(3, 2).double(), lambda y, t: weight() * F.mse_loss(y, t)


def _both(maml: fm.MAML) -> tuple[Tensor, Tensor]:
    gradient = outcome(maml, vectors()).gradient
    return gradient, maml.evaluate(vectors()).losses
