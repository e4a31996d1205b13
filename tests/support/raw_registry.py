"""Where raw ops in plain PyTorch formulas are noted by name, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def raw(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def only(need: int, *results: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    return tuple(r().clone() if need >> i & 1 else nothing() for i, r in enumerate(results))


def nothing() -> Tensor:
    return torch.empty(0)


def channels_last(x: Tensor) -> Tensor:
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
