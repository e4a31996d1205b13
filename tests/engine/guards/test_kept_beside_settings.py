"""A container in which a model keeps an activation and has a setting: the setting still counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from outcomes import outcome, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm


class Keeping(nn.Linear):
    """Keeps an activation in the container that holds its setting."""

    def __init__(self, kept: Any) -> None:
        super().__init__(3, 2)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.kept[1] = y.detach() if isinstance(self.kept, dict) else y
        return y * self.kept[0]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kept", [{0: 1.0, 1: None}, [1.0, None]], ids=["dict", "list"])
def test_a_setting_beside_an_activation(kept: Any) -> None:
    maml = fm.MAML(Keeping(kept).double(), lr=0.3, loss=F.mse_loss, spot_checks=False)
    for _ in range(3):
        before = _both(maml)
    kept[0] = 3.0
    fresh = fm.MAML(maml.module, lr=0.3, loss=F.mse_loss, executor="eager", backend="reference")
    found, expected = _both(maml), _both(fresh)
    assert not torch.equal(before[0], expected[0])
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


def _both(maml: fm.MAML) -> tuple[Tensor, Tensor]:
    gradient = outcome(maml, vectors()).gradient
    return gradient, maml.evaluate(vectors()).losses
