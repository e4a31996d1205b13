"""Normalisation with a bias and no weight, of which PyTorch's kernels have no second derivative."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PLACES: dict[Any, int] = {
    F.layer_norm: 2,
    torch.layer_norm: 2,
    F.group_norm: 2,
    torch.group_norm: 2,
    F.batch_norm: 3,
    F.instance_norm: 3,
    torch.batch_norm: 1,
    torch.instance_norm: 1,
}
"""Functions, and the place of their weight; that of the bias is the next."""


def bias_alone(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The bias of such a call, of the shape in which it is added to the result without it."""
    place = PLACES.get(func)
    if place is None:
        return None
    weight = args[place] if len(args) > place else kwargs.get("weight")
    bias = args[place + 1] if len(args) > place + 1 else kwargs.get("bias")
    if weight is not None or bias is None:
        return None
    if func in (F.layer_norm, torch.layer_norm):
        return bias
    input = args[0] if args else kwargs["input"]
    return bias.view(-1, *[1] * (input.ndim - 2))


def without_bias(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of the same call without it."""
    place = PLACES[func] + 1
    if len(args) > place:
        return (*args[:place], None, *args[place + 1 :]), dict(kwargs)
    return args, {**kwargs, "bias": None}
