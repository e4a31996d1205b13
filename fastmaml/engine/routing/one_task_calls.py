"""The functions that a learner's kernels stand in for, each with what it takes of them.

A handler gets a call's arguments as the model gave them, and returns NotImplemented where the
kernels do not have it, or would not be faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmaml.engine.routing.one_task import OneTaskCalls
from fastmaml.engine.routing.to_ops import pair, sized
from fastmaml.ops import one_task
from fastmaml.ops.one_task import Normalisation


def routed(calls: OneTaskCalls, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of a call, or NotImplemented."""
    handler = _HANDLERS.get(func)
    if handler is None:
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
    if calls.ahead != () or not _tensors(input, weight, bias):
        return NotImplemented
    if groups != 1 or isinstance(padding, str) or not input.ndim == weight.ndim == 4:
        return NotImplemented
    if input.shape[1] != weight.shape[1] or not sized(len(weight), bias):
        return NotImplemented
    steps, pads, gaps = map(pair, (stride, padding, dilation))
    reach = zip(input.shape[2:], weight.shape[2:], pads, gaps, strict=True)
    if any(n + 2 * pad < gap * (kernel - 1) + 1 for n, kernel, pad, gap in reach):
        return NotImplemented
    if not weight.is_contiguous() or not calls.take("task_conv2d", input, weight, bias):
        return NotImplemented
    calls.ahead = None
    x, w = map(one_task.dense_gradient, (input, weight))
    return one_task.conv2d(calls.backend, x, w, bias, steps, pads, gaps)


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
    if not calls.ahead or not training or not _tensors(input, weight, bias, *kept):
        return NotImplemented
    channels = input.shape[1]
    count = input.numel() // channels if channels else 0
    if count < 2 or eps <= 0 or not sized(channels, weight, bias, *kept):
        return NotImplemented
    if (weight is None and bias is not None) or not _alike(input, kept):
        return NotImplemented
    if not calls.take("task_batch_norm", input, weight, bias):
        return NotImplemented
    (relu, pool), calls.ahead = calls.ahead, None
    of = Normalisation(one_task.dense_gradient(input), weight, bias, eps, relu, pool)
    y, mean, scale = one_task.batch_norm(calls.backend, of)
    # As data, which counts no version: PyTorch's own BatchNorm, which saves them, does not either.
    with torch.no_grad():
        if running_mean is not None:
            running_mean.data.lerp_(mean, momentum)
        if running_var is not None:
            running_var.data.lerp_(_variance(input, scale, eps, count), momentum)
    return y


def _variance(x: Tensor, scale: Tensor, eps: float, count: int) -> Tensor:
    """The unbiased variance of the channels; from 1/std where that loses nothing of it."""
    found = scale.square().reciprocal() - eps
    if bool((found >= eps).all()):
        return found * (count / (count - 1))
    return x.transpose(0, 1).flatten(1).var(1)


def _layer_norm(
    calls: OneTaskCalls,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    shape = tuple(normalized_shape)
    if not shape or not _tensors(input, weight, bias) or input.is_nested:
        return NotImplemented
    if input.shape[-len(shape) :] != shape or not input.numel():
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
    if (
        not _tensors(input)
        or input.is_nested
        or input.numel() < calls.least(kind)
        or not input.is_contiguous()
    ):
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
        if mask.requires_grad or is_causal or not 2 <= mask.ndim <= 4:
            return NotImplemented
        if mask.dtype not in (torch.bool, query.dtype) or not mask.is_cpu:
            return NotImplemented
        sizes = zip(reversed(mask.shape), (keys, rows, heads, batch), strict=False)
        if any(m not in (1, n) for m, n in sizes):
            return NotImplemented
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    if not calls.take("task_attention", query, key, value):
        return NotImplemented
    factor = size**-0.5 if scale is None else scale
    q, k, v = map(one_task.dense_gradient, (query, key, value))
    found = one_task.attention(calls.backend, q, k, v, mask, is_causal, factor)
    return found.contiguous()


def _tensors(first: Any, *others: Any) -> bool:
    """Whether the first is a tensor, and the others are, or None."""
    return isinstance(first, Tensor) and all(isinstance(x, Tensor | None) for x in others)


def _alike(x: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    """Whether those that are there are constants that lie where x does, and are such numbers."""
    return all(
        v is None or (v.dtype == x.dtype and v.device == x.device and not v.requires_grad)
        for v in others
    )


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.gelu: _gelu,
    F.silu: _silu,
    F.scaled_dot_product_attention: _attention,
}
