# ruff: noqa: D102
"""Random masks that are a pure function of a key: `dropout_mask`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.ops._checks import chosen, same_device, shape
from fastmaml.ops._function import TaskFunction
from fastmaml.ops._load import Kernels

_BITS = 32
_LOW = (1 << _BITS) - 1
_STRIDE = 0x9E3779B1  # the golden ratio's bits: spreads neighbouring indices over the range


def dropout_mask(
    key: Tensor,
    shape: Sequence[int],
    p: float,
    like: Tensor,
    *,
    backend: str = "reference",
) -> Tensor:
    """For every task a mask of 0 with probability `p`, else ``1/(1-p)``.

    Element i is kept where a hash of (key, i) falls in the right part of its range: equal keys give
    equal masks, on every backend, for a task alone and among others. A constant to derivatives.

    Args:
        key: ``[tasks]`` int64.
        shape: of the mask of one task.
        p: the probability of dropping, in ``[0, 1]``, resolved to 2^-32.
        like: gives the dtype and device.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``[tasks, *shape]`` of the dtype of `like`.

    Raises:
        ValueError: key is not ``[tasks]`` int64 on the device of `like`, `like` is not
            floating-point, p is no probability, or the backend is unknown or cannot make it.
    """
    op = "dropout_mask"
    if not like.is_floating_point():
        raise ValueError(f"{op}: like is {like.dtype}; it must be floating-point.")
    check_key(op, key, "like", like)
    check_probability(op, "p", p)
    found = chosen(op, backend, "like", like)
    if found is None:
        return reference_dropout_mask(key, shape, p, like.dtype)
    return native_dropout_mask(found, key, shape, p, like.dtype)


def check_key(op: str, key: Tensor, first: str, x: Tensor) -> None:
    """Check that the key is ``[tasks]`` int64, where x is."""
    shape(op, "key", key, "tasks")
    if key.dtype != torch.int64:
        raise ValueError(f"{op}: key is {key.dtype}; it must be torch.int64.")
    same_device(op, "key", key, first, x)


def check_probability(op: str, name: str, p: float) -> None:
    """Check that p is in ``[0, 1]``."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: {name}={p}; it must be a probability, from 0 to 1.")


def reference_dropout_mask(
    key: Tensor, shape: Sequence[int], p: float, dtype: torch.dtype
) -> Tensor:
    """The definition in PyTorch."""
    index = torch.arange(math.prod(shape), device=key.device)
    keep = mixed(index * _STRIDE + mixed(key).unsqueeze(1)) >= int(p * (1 << _BITS))
    scale = 0.0 if p >= 1 else 1 / (1 - p)
    return (keep.to(dtype) * scale).view(-1, *shape) if shape else (keep.to(dtype) * scale)[:, 0]


def mixed(x: Tensor) -> Tensor:
    """Thirty-two well mixed bits of an int64 tensor (an xor-shift-multiply finaliser)."""
    x = (x ^ (x >> _BITS)) & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def native_dropout_mask(
    kernels: Kernels, key: Tensor, shape: Sequence[int], p: float, dtype: torch.dtype
) -> Tensor:
    """`dropout_mask` by the kernels of a backend."""
    flat: Tensor = DropoutMask.apply(kernels, key, math.prod(shape), p, dtype)
    return flat.view(len(key), *shape)


@final
class DropoutMask(TaskFunction):
    """``[tasks, size]`` of a ``[tasks]`` key, which has no derivative."""

    @staticmethod
    def forward(kernels: Kernels, key: Tensor, size: int, p: float, dtype: torch.dtype) -> Tensor:
        mask: Tensor = kernels.dropout_mask(key, size, p, dtype)
        return mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: None) -> Any:
        return (None,) * 5

    @staticmethod
    def jvp(ctx: Any, *_: None) -> Any:
        return None
