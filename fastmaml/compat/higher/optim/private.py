"""What higher keeps for itself in its `optim`, and public scripts import all the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.numerics import Coefficient, plus

_GroupedGradsType = list[list[Tensor]]
_StateType = list[defaultdict[int, Any]]
_GradClosureType = Callable[[Tensor], Tensor]
_OverrideType = dict[str, list[Any]]
_GradCallbackType = Callable[[list[Tensor]], list[Tensor]]


def _add(tensor: Tensor, a1: Coefficient, a2: Tensor | None = None) -> Tensor:
    """``tensor + a1``, or with three arguments ``tensor + a1·a2``."""
    return tensor + a1 if a2 is None else plus(tensor, a1, a2)


def _get_mask_closure(mask: Tensor) -> _GradClosureType:
    """A hook for `Tensor.register_hook` that lets no gradient pass where the mask is True."""
    return lambda gradient: torch.where(mask, 0.0, gradient)
