"""Equality of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def same_values(x: Tensor, y: Tensor) -> bool:
    """Whether shape, dtype and every value agree; NaN agrees with NaN, and with nothing else."""
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return False
    return torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all())
