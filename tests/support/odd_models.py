"""A linear model that does whatever a test wants with its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Odd(nn.Module):
    """A linear model that also does what `how` does with its output."""

    def __init__(self, how: Callable[[Odd, Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.calls = 0
        self.register_buffer("count", torch.zeros(()))
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(self, self.linear(x))


def odd(how: Callable[[Odd, Tensor], Any]) -> Callable[[], nn.Module]:
    """What makes such a model."""
    return lambda: Odd(how)
