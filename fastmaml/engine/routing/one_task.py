"""Which calls of a learner that is called by hand reach the kernels.

Each runs as it comes, so that the kernels have to pay for themselves call by call: where that was
measured, on the CPU, from some size on. All results have the layout that PyTorch's have. Between
convolution, normalisation, ReLU and pooling the kernels keep images channels-last: beside the last
result its channels-last twin is kept, which the next call takes unless the result was written to.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastmaml import ops
from fastmaml.engine.base import functorch
from fastmaml.ops import one_task
from fastmaml.ops.one_task import Normalisation

LEAST: Final = {
    "task_conv2d": 1 << 18,
    "task_batch_norm": 1 << 10,
    "task_layer_norm": 1 << 16,
    "gelu": 1 << 16,
    "gelu_tanh": 1 << 16,
    "silu": 1 << 18,
    "task_attention": 1 << 21,
}
"""From so many multiplications (of products) or elements on the kernels are the faster."""

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def has_kernels() -> bool:
    """Whether calls may go to the kernels: nothing else watches which functions run."""
    modes = _get_current_function_mode_stack()
    return (
        all(type(mode) is DeviceContext for mode in modes)
        and torch._C._len_torch_dispatch_stack() == 0
        and functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and ops.default_backend("cpu") != "reference"
    )


@dataclass(frozen=True)
class _Last:
    """The last result.

    Attributes:
        result: as the model has it.
        version: of it, which counts what is written to it.
        twin: the same, channels-last.
        how: it was normalised.
    """

    result: Tensor
    version: int
    twin: Tensor
    how: Normalisation | None = None


@final
class OneTaskCalls:
    """The calls of one forward pass, while `has_kernels`."""

    def __init__(self) -> None:
        self.backend = ops.default_backend("cpu")
        self._last: _Last | None = None
        self._unseen = False
        self._ahead: tuple[bool, bool] | None = None

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result, or NotImplemented."""
        handler = _HANDLERS.get(func)
        if handler is None:
            return NotImplemented
        try:
            given = _SIGNATURES[func].bind(self, *args, **kwargs)
        except TypeError:
            return NotImplemented  # PyTorch's own error is the better one
        return handler(*given.args, **given.kwargs)

    def take(self, op: str, count: int, *tensors: Tensor | None, least: str = "") -> bool:
        """Whether the kernels take a call of so many multiplications or elements."""
        given = [x for x in tensors if x is not None]
        return (
            count >= LEAST[least or op]
            and any(x.requires_grad for x in given)
            and all(type(x) in _PLAIN and x.is_cpu for x in given)
            and ops.covers(op, self.backend, given)
        )

    def unseen(self, layer: nn.Module, x: Any) -> Any:
        """The result of a convolution that only `normalised` is given: it may be channels-last."""
        self._unseen = True
        try:
            return layer(x)
        finally:
            self._unseen = False

    def normalised(self, layer: nn.Module, x: Any, relu: bool, pool: bool) -> tuple[Any, bool]:
        """The result of a BatchNorm, and whether what follows it was done as well.

        Args:
            layer: the BatchNorm.
            x: its input.
            relu: whether a ReLU follows, and nobody sees what is between.
            pool: whether max-pooling follows that.
        """
        self._ahead = relu, pool
        try:
            result = layer(x)
            done = self._ahead is None
        finally:
            self._ahead = None
        return result if done else result.contiguous(), done

    def twin(self, x: Tensor) -> Tensor:
        """The channels-last twin of the last result, or what is given."""
        last = self._last
        return last.twin if last is not None and _is_last(x, last) else x

    def how(self, x: Any) -> Normalisation | None:
        """How `x` was normalised, if it is the last result and was."""
        last = self._last
        return last.how if last is not None and _is_last(x, last) else None

    def made(self, twin: Tensor, how: Normalisation | None = None) -> Tensor:
        """The result of which this is the twin."""
        result = twin if self._unseen else one_task.channels_first(twin)
        self._last = _Last(result, result._version, twin, how)
        return result

    def again(self, how: Normalisation, over: Tensor | None = None) -> Tensor:
        """The last result, normalised anew, with what follows; `over`: that was written over it."""
        twin = one_task.batch_norm(self.backend, how)[0]
        if over is None:
            return self.made(twin, how)
        self._last = _Last(over, over._version, twin, how)
        return over

    def first(self, how: Normalisation) -> tuple[Tensor, Tensor, Tensor]:
        """The batch normalised, with all that was asked for ahead; its mean and 1/std."""
        if self._ahead is not None:
            relu, pool = self._ahead
            if not pool or min(how.x.shape[2:]) > 1:
                how, self._ahead = replace(how, relu=relu, pool=pool), None
        y, mean, scale = one_task.batch_norm(self.backend, how)
        return self.made(y, how), mean, scale


def _is_last(x: Any, last: _Last) -> bool:
    return last.result is x and x._version == last.version


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
    if groups != 1 or isinstance(padding, str) or input.shape[1] != weight.shape[1]:
        return NotImplemented
    steps, pads, gaps = map(_pair, (stride, padding, dilation))
    size = [
        (n + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for n, kernel, step, pad, gap in zip(
            input.shape[2:], weight.shape[2:], steps, pads, gaps, strict=True
        )
    ]
    if min(size) < 1 or not _vectors(len(weight), bias):
        return NotImplemented
    products = len(input) * math.prod(size) * weight.numel()
    if not calls.take("task_conv2d", products, input, weight, bias):
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
    channels = input.shape[1]
    count = input.numel() // channels if channels else 0
    if count < 2 or not _vectors(channels, weight, bias, *kept):
        return NotImplemented
    if (weight is None and bias is not None) or not _alike(input, kept):
        return NotImplemented
    if not calls.take("task_batch_norm", input.numel(), input, weight, bias):
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
    given = [v for v in (weight, bias) if v is not None]
    if any(v.shape != shape for v in given) or not input.is_contiguous():
        return NotImplemented
    if weight is None and bias is not None:
        return NotImplemented
    if not calls.take("task_layer_norm", input.numel(), input, weight, bias):
        return NotImplemented
    w, b = (None if v is None else v.flatten() for v in (weight, bias))
    rows = input.reshape(-1, math.prod(shape))
    return one_task.layer_norm(calls.backend, rows, w, b, eps).view(input.shape)


def _gelu(calls: OneTaskCalls, input: Any, approximate: str = "none") -> Any:
    return _activated(calls, input, "gelu_tanh" if approximate == "tanh" else "gelu")


def _silu(calls: OneTaskCalls, input: Any, inplace: bool = False) -> Any:
    return NotImplemented if inplace else _activated(calls, input, "silu")


def _activated(calls: OneTaskCalls, input: Any, kind: str) -> Any:
    if not _tensors(input) or not input.is_contiguous():
        return NotImplemented
    if not calls.take("task_act", input.numel(), input, least=kind):
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
    if not calls.take("task_attention", query.numel() * keys, query, key, value):
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
_SIGNATURES = {function: inspect.signature(handler) for function, handler in _HANDLERS.items()}
