"""The functions that a learner's kernels stand in for, each with what it takes of them.

A handler gets a call's arguments as the model gave them, and returns NotImplemented where the
kernels do not have it, or would not be faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmaml.engine.routing.one_task import OneTaskCalls
from fastmaml.ops import one_task
from fastmaml.ops.one_task import Normalisation


def routed(calls: OneTaskCalls, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of a call, or NotImplemented."""
    handler = _HANDLERS.get(func)
    if func in _WRITES_UNCOUNTED:
        calls.last = None
    if handler is None or (calls.last is None and handler in _FOLLOWING):
        return NotImplemented
    try:
        return handler(calls, *args, **kwargs)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        return NotImplemented  # of other arguments, where PyTorch's own error is the better one


def _conv2d(
    calls: OneTaskCalls,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not _tensors(input, weight, bias) or not input.ndim == weight.ndim == 4:
        return NotImplemented
    follows = calls.has_twin(input)
    results = input[:, :1].numel() * len(weight)  # as if it left the size alone
    if not (calls.convolves or calls.unseen_next) or results < calls.least("task_conv2d", follows):
        return NotImplemented
    if groups != 1 or isinstance(padding, str) or input.shape[1] != weight.shape[1]:
        return NotImplemented
    if not (follows or input.is_contiguous()) or not weight.is_contiguous():
        return NotImplemented  # PyTorch's result has the layout of either
    steps, pads, gaps = map(_pair, (stride, padding, dilation))
    size = [
        (n + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for n, kernel, step, pad, gap in zip(
            input.shape[2:], weight.shape[2:], steps, pads, gaps, strict=True
        )
    ]
    if min(size) < 1 or not _vectors(len(weight), bias):
        return NotImplemented
    if not calls.take("task_conv2d", input, weight, bias):
        return NotImplemented
    x = calls.twin(input)
    return calls.made(one_task.conv2d(calls.backend, x, weight, bias, steps, pads, gaps))


def _batch_norm(
    calls: OneTaskCalls,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    kept = running_mean, running_var
    if not training or not _tensors(input, weight, bias, *kept) or input.ndim != 4:
        return NotImplemented
    follows = calls.has_twin(input)
    if input.numel() < calls.least("task_batch_norm", follows):
        return NotImplemented
    if not (follows or input.is_contiguous()):
        return NotImplemented  # PyTorch's result has its layout
    channels = input.shape[1]
    count = input.numel() // channels if channels else 0
    if count < 2 or not _vectors(channels, weight, bias, *kept):
        return NotImplemented
    if (weight is None and bias is not None) or not _alike(input, kept):
        return NotImplemented
    if not calls.take("task_batch_norm", input, weight, bias):
        return NotImplemented
    y, mean, scale = calls.first(Normalisation(calls.twin(input), weight, bias, eps))
    # As data, which counts no version: PyTorch's own BatchNorm, which saves them, does not either.
    with torch.no_grad():
        if running_mean is not None:
            running_mean.data.lerp_(mean, momentum)
        if running_var is not None:
            variance = (scale.square().reciprocal() - eps) * (count / (count - 1))
            running_var.data.lerp_(variance, momentum)
    return y


def _relu(calls: OneTaskCalls, input: Any, inplace: bool = False) -> Any:
    how = calls.how(input)
    if how is None or how.relu or how.pool:
        return NotImplemented
    return calls.again(replace(how, relu=True), torch.relu_(input) if inplace else None)


def _relu_(calls: OneTaskCalls, input: Any) -> Any:
    return _relu(calls, input, inplace=True)


def _max_pool2d(
    calls: OneTaskCalls,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    how = calls.how(input)
    if how is None or how.pool or return_indices or ceil_mode or min(input.shape[2:]) < 2:
        return NotImplemented
    steps = kernel_size if stride in (None, [], ()) else stride
    if [*map(_pair, (kernel_size, steps, padding, dilation))] != [(2, 2), (2, 2), (0, 0), (1, 1)]:
        return NotImplemented
    return calls.again(replace(how, pool=True))


def _layer_norm(
    calls: OneTaskCalls,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    shape = tuple(normalized_shape)
    if not shape or not _tensors(input, weight, bias) or input.shape[-len(shape) :] != shape:
        return NotImplemented
    if input.numel() < calls.least("task_layer_norm"):
        return NotImplemented
    given = [v for v in (weight, bias) if v is not None]
    if any(v.shape != shape for v in given) or not input.is_contiguous():
        return NotImplemented
    if weight is None and bias is not None:
        return NotImplemented
    if not calls.take("task_layer_norm", input, weight, bias):
        return NotImplemented
    w, b = (None if v is None else v.flatten() for v in (weight, bias))
    rows = input.reshape(-1, math.prod(shape))
    return one_task.layer_norm(calls.backend, rows, w, b, eps).view(input.shape)


def _gelu(calls: OneTaskCalls, input: Any, approximate: str = "none") -> Any:
    return _activated(calls, input, "gelu_tanh" if approximate == "tanh" else "gelu")


def _silu(calls: OneTaskCalls, input: Any, inplace: bool = False) -> Any:
    return NotImplemented if inplace else _activated(calls, input, "silu")


def _activated(calls: OneTaskCalls, input: Any, kind: str) -> Any:
    if not _tensors(input) or input.numel() < calls.least(kind) or not input.is_contiguous():
        return NotImplemented
    if not calls.take("task_act", input):
        return NotImplemented
    return one_task.act(calls.backend, input, kind)


def _attention(
    calls: OneTaskCalls,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p > 0 or enable_gqa or not _tensors(query, key, value, attn_mask):
        return NotImplemented
    if not query.ndim == key.ndim == value.ndim == 4 or not query.numel():
        return NotImplemented
    batch, heads, rows, size = query.shape
    keys, mask = key.shape[2], attn_mask
    if query.numel() * keys < calls.least("task_attention"):
        return NotImplemented
    if key.shape != (batch, heads, keys, size) or value.shape[:3] != key.shape[:3]:
        return NotImplemented
    if mask is not None:
        if mask.requires_grad or is_causal or mask.ndim > 4:
            return NotImplemented
        sizes = zip(reversed(mask.shape), (keys, rows, heads, batch), strict=False)
        if any(m not in (1, n) for m, n in sizes):
            return NotImplemented
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        mask = mask.to(query.dtype)
    if not calls.take("task_attention", query, key, value):
        return NotImplemented
    factor = size**-0.5 if scale is None else scale
    found = one_task.attention(calls.backend, query, key, value, mask, is_causal, factor)
    return found.contiguous()


def _pair(x: Any) -> tuple[int, int]:
    if isinstance(x, int):
        return x, x
    return (x[0], x[0]) if len(x) == 1 else (x[0], x[1])


def _tensors(first: Any, *others: Any) -> bool:
    """Whether the first is a tensor, and the others are, or None."""
    return isinstance(first, Tensor) and all(isinstance(x, Tensor | None) for x in others)


def _vectors(size: int, *vectors: Tensor | None) -> bool:
    """Whether those that are there have this many elements."""
    return all(v is None or v.shape == (size,) for v in vectors)


def _alike(x: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    """Whether those that are there are constants that lie where x does, and are such numbers."""
    return all(
        v is None or (v.dtype == x.dtype and v.device == x.device and not v.requires_grad)
        for v in others
    )


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.max_pool2d: _max_pool2d,
    F.layer_norm: _layer_norm,
    F.gelu: _gelu,
    F.silu: _silu,
    F.scaled_dot_product_attention: _attention,
}
_WRITES_UNCOUNTED = frozenset(
    (
        Tensor.data.__get__,  # type: ignore[attr-defined]
        Tensor.numpy,
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.data_ptr,
        Tensor.storage,
        Tensor.untyped_storage,
    )
)
"""Doors to a tensor's memory, or that of what it is a view of, where no version counts writes."""

_FOLLOWING = (_relu, _relu_, _max_pool2d)
"""What only follows on a result of the kernels."""
