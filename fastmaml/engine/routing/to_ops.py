"""Which of a model's calls reach the task-batched ops, and as which.

A handler gets a call's arguments as the model gave them for one task, and returns NotImplemented
where the op does not cover them (another dtype, grouped convolutions, class weights, ...): the call
then goes on to PyTorch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmaml import ops
from fastmaml.engine.routing.decompositions import group_norm

Handler = Callable[..., Any]


class OpRouting:
    """Sends calls to the ops of one backend.

    Args:
        backend: of `fastmaml.ops`, not "reference".
        own_statistics: see `Routing`.
        fuses: whether ``relu(linear(x))`` and ``max_pool2d(relu(batch_norm(x)))`` become one op
            when their last function is called. The first ones have run by then, for nothing.
    """

    def __init__(self, backend: str, own_statistics: bool, fuses: bool) -> None:
        self.backend, self.own_statistics, self.fuses = backend, own_statistics, fuses
        self.last: tuple[Any, Handler, dict[str, Any]] | None = None
        """The last result that another function could be fused into, and how it was made."""

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result, or NotImplemented."""
        handler = _HANDLERS.get(func)
        if handler is None or torch.is_autocast_enabled(_device(args)):
            self.last = None  # `func` may write to it
            return NotImplemented
        try:
            given = _SIGNATURES[func].bind(self, *args, **kwargs)
        except TypeError:
            return NotImplemented  # PyTorch's own error is the better one
        result = handler(*given.args, **given.kwargs)
        if result is NotImplemented:
            self.last = None
        return result

    def covers(self, op: str, *tensors: Tensor | None) -> bool:
        """Whether the backend has the op for these tensors."""
        return ops.covers(op, self.backend, tensors)

    def made(self, result: Tensor, how: Handler, **arguments: Any) -> Tensor:
        """Remember how `result` was made, if something may be fused into it."""
        if self.fuses:
            self.last = (result, how, arguments)
        return result

    def exchanged(self, x: Tensor, y: Tensor) -> None:
        """Go on where the last result has become another tensor's (`in_place`)."""
        if self.last is not None and self.last[0] is y:
            self.last = (x, *self.last[1:])

    def fused(self, x: Any, how: Handler, **more: Any) -> Any:
        """`x` made anew with `more`, where it is the last result and was made so."""
        if self.last is None or self.last[0] is not x or self.last[1] is not how:
            return NotImplemented
        arguments = self.last[2]
        if any(arguments[name] for name in more):
            return NotImplemented
        return how(self, **{**arguments, **more})


def _device(args: Any) -> str:
    return next((x.device.type for x in args if isinstance(x, Tensor)), "cpu")


def _linear(mode: OpRouting, input: Any, weight: Any, bias: Any = None) -> Any:
    fits = mode.covers("task_linear", input, weight, bias) and weight.ndim == 2 and input.ndim > 0
    if not fits or input.shape[-1] != weight.shape[1] or not sized(weight.shape[0], bias):
        return NotImplemented
    return _affine(mode, x=input, w=weight, b=bias, activation=None)


def _affine(mode: OpRouting, *, x: Tensor, w: Tensor, b: Any, activation: str | None) -> Tensor:
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y = ops.task_linear(
        rows[None],
        w[None],
        None if b is None else b[None],
        activation=activation,
        backend=mode.backend,
    ).squeeze(0)
    y = y if x.ndim == 2 else y.view(*x.shape[:-1], -1)
    return mode.made(y, _affine, x=x, w=w, b=b, activation=activation)


def _conv2d(
    mode: OpRouting,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    fits = mode.covers("task_conv2d", input, weight, bias) and input.ndim == 4 and groups == 1
    if not fits or isinstance(padding, str) or weight.ndim != 4:
        return NotImplemented
    if input.shape[1] != weight.shape[1] or not sized(weight.shape[0], bias):
        return NotImplemented
    window = pair(dilation)
    for size, kernel, pad, gap in zip(
        input.shape[2:], weight.shape[2:], pair(padding), window, strict=True
    ):
        if size + 2 * pad < gap * (kernel - 1) + 1:
            return NotImplemented
    return ops.task_conv2d(
        input[None],
        weight[None],
        None if bias is None else bias[None],
        stride=pair(stride),
        padding=pair(padding),
        dilation=pair(dilation),
        backend=mode.backend,
    ).squeeze(0)


def sized(size: int, *vectors: Tensor | None) -> bool:
    """Whether those that are there have this many elements."""
    return all(v is None or v.shape == (size,) for v in vectors)


def pair(x: Any) -> tuple[int, int]:
    """Vertical and horizontal, of one number for both or of one or two."""
    if isinstance(x, int):
        return x, x
    return (x[0], x[0]) if len(x) == 1 else (x[0], x[1])


def _batch_norm(
    mode: OpRouting,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    own = mode.own_statistics or (training and running_mean is None)
    fits = own and mode.covers("task_batch_norm", input, weight, bias)
    if not fits or input.ndim not in (2, 3, 4) or not sized(input.shape[1], weight, bias):
        return NotImplemented
    if input.numel() == input.shape[1]:
        return NotImplemented  # one value a channel: PyTorch says what is wrong with that
    return _normalised(mode, x=input, w=weight, b=bias, eps=eps, relu=False, pool=False)


def _normalised(
    mode: OpRouting, *, x: Tensor, w: Any, b: Any, eps: float, relu: bool, pool: bool
) -> Tensor:
    image = x if x.ndim == 4 else x.reshape(*x.shape, *[1] * (4 - x.ndim))
    y = ops.task_batch_norm(
        image[None],
        None if w is None else w[None],
        None if b is None else b[None],
        eps=eps,
        relu=relu,
        pool=pool,
        backend=mode.backend,
    ).squeeze(0)
    y = y if x.ndim == 4 else y.reshape(x.shape)
    return mode.made(y, _normalised, x=x, w=w, b=b, eps=eps, relu=relu, pool=pool)


def _relu(mode: OpRouting, input: Any, inplace: bool = False) -> Any:
    if inplace or not isinstance(input, Tensor):
        return NotImplemented
    result = mode.fused(input, _normalised, relu=True)
    return mode.fused(input, _affine, activation="relu") if result is NotImplemented else result


def _max_pool2d(
    mode: OpRouting,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    window = pair(kernel_size), pair(kernel_size if stride in (None, []) else stride)
    plain = pair(padding) == (0, 0) and pair(dilation) == (1, 1) and not ceil_mode
    if window != ((2, 2), (2, 2)) or not plain or return_indices or input.ndim != 4:
        return NotImplemented
    if min(input.shape[-2:]) < 2:
        return NotImplemented
    return mode.fused(input, _normalised, pool=True)


def _activation(kind: str) -> Handler:
    def handler(mode: OpRouting, input: Any, inplace: bool = False) -> Any:
        if inplace or not mode.covers("task_act", input):
            return NotImplemented
        result = mode.fused(input, _affine, activation=kind)
        if result is NotImplemented:
            result = ops.task_act(input[None], kind, backend=mode.backend).squeeze(0)
        return result

    return handler


def _gelu(mode: OpRouting, input: Any, approximate: str = "none") -> Any:
    return _activation("gelu_tanh" if approximate == "tanh" else "gelu")(mode, input)


def _layer_norm(
    mode: OpRouting,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    shape = tuple(normalized_shape)
    fits = mode.covers("task_layer_norm", input, weight, bias)
    if not fits or tuple(input.shape[-len(shape) :]) != shape:
        return NotImplemented
    size = 1
    for n in shape:
        size *= n
    w, b = (None if p is None else p.reshape(1, size) for p in (weight, bias))
    rows = input.reshape(1, -1, size)
    return (
        ops.task_layer_norm(rows, w, b, eps=eps, backend=mode.backend).squeeze(0).view(input.shape)
    )


def _view(mode: OpRouting, input: Any, *size: Any) -> Any:
    """The ops keep images channels-last, of which not every view is one."""
    if not size or isinstance(size[0], torch.dtype):
        return NotImplemented
    try:
        return input.view(*size)
    except RuntimeError:  # reshape says so too where the sizes are wrong
        return input.reshape(*size)


def _group_norm(mode: OpRouting, *args: Any, **kwargs: Any) -> Any:
    """PyTorch's asks for the memory format, which vmap cannot tell of channels-last images."""
    return group_norm(*args, **kwargs)


def _adaptive_avg_pool2d(mode: OpRouting, input: Any, output_size: Any) -> Any:
    """PyTorch's restrides the mean of channels-last images in place, one task at a time in vmap."""
    sizes = (output_size,) if isinstance(output_size, int) else tuple(output_size)
    if set(sizes) != {1} or not isinstance(input, Tensor) or input.ndim not in (3, 4):
        return NotImplemented
    return input.mean((-2, -1), keepdim=True)


def _cross_entropy(
    mode: OpRouting,
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    usual = weight is None and size_average is None and reduce is None and label_smoothing == 0
    fits = usual and reduction == "mean" and mode.covers("task_cross_entropy", input)
    if not fits or input.ndim != 2:
        return NotImplemented
    if target.dtype != torch.int64 or target.shape != input.shape[:1]:
        return NotImplemented
    return ops.task_cross_entropy(
        input[None], target[None], ignore_index=ignore_index, backend=mode.backend
    ).squeeze(0)


def _mse_loss(
    mode: OpRouting,
    input: Any,
    target: Any,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    usual = weight is None and size_average is None and reduce is None and reduction == "mean"
    fits = usual and mode.covers("task_mse", input, target)
    if not fits or input.shape != target.shape:
        return NotImplemented
    if input.ndim == 0:
        return NotImplemented
    return ops.task_mse(input[None], target[None], backend=mode.backend).squeeze(0)


_HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    F.max_pool2d: _max_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.gelu: _gelu,
    F.silu: _activation("silu"),
    F.tanh: _activation("tanh"),
    torch.tanh: _activation("tanh"),
    Tensor.tanh: _activation("tanh"),
    F.sigmoid: _activation("sigmoid"),
    torch.sigmoid: _activation("sigmoid"),
    Tensor.sigmoid: _activation("sigmoid"),
    Tensor.view: _view,
    F.cross_entropy: _cross_entropy,
    F.mse_loss: _mse_loss,
}
_SIGNATURES = {function: inspect.signature(handler) for function, handler in _HANDLERS.items()}
