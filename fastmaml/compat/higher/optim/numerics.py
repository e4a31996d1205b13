"""Arithmetic in which a coefficient may be a number or a tensor that is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Coefficient = float | Tensor


def is_on(coefficient: Coefficient) -> bool:
    """Whether a term is there: one with a tensor always is, so that it learns at zero too."""
    return isinstance(coefficient, Tensor) or coefficient != 0


def counted(state: dict[str, Any]) -> float:
    """The number of this step, 1 for the first; noted in the state."""
    state["step"] = step = float(state.get("step", 0)) + 1
    return step


def plus(a: Tensor, scale: Coefficient, b: Tensor) -> Tensor:
    """``a + scale·b``, rounded twice, as higher and loops written by hand do.

    `torch.add` with ``alpha=`` rounds once, and gives other last bits.
    """
    return a + b * scale


def plus_ratio(a: Tensor, scale: Coefficient, b: Tensor, c: Tensor) -> Tensor:
    """``a + scale·b/c``."""
    if isinstance(scale, Tensor):
        return a + scale * (b / c)
    return torch.addcdiv(a, b, c, value=scale)


def decayed(old: Tensor, keep: Coefficient, new: Tensor) -> Tensor:
    """``keep·old + (1 − keep)·new``."""
    if isinstance(keep, Tensor):
        return keep * old + (1 - keep) * new
    return torch.lerp(old, new, 1 - keep)


def decayed_square(old: Tensor, keep: Coefficient, new: Tensor) -> Tensor:
    """``keep·old + (1 − keep)·new²``."""
    if isinstance(keep, Tensor):
        return keep * old + (1 - keep) * (new * new)
    return torch.addcmul(keep * old, new, new, value=1 - keep)
