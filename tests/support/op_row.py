"""A row of the op table, and what inputs are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One op, one configuration, one set of inputs.

    Attributes:
        op: the public op.
        case: what is particular about it.
        native: takes `Kernels` and the inputs.
        reference: takes the inputs; the definition.
        inputs: makes them, in float64 (and int64), the same each time.
        small: whether finite differences are affordable.
    """

    op: str
    case: str
    native: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    small: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.case}"


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def shared(x: Tensor, tasks: int) -> Tensor:
    """The first task's for all, with a stride of 0."""
    return x[:1].expand(tasks, *x.shape[1:])


def scattered(x: Tensor) -> Tensor:
    """The same values, dense in no dimension."""
    return torch.stack((x, -x), -1).movedim(-2, 0).contiguous().movedim(0, -2)[..., 0]
