# ruff: noqa: D102
"""A 2-D convolution of all tasks, each with its own weights: `task_conv2d`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor

from fastmaml.ops._checks import prepared, shape
from fastmaml.ops._function import TaskFunction, filled, plus
from fastmaml.ops._load import Kernels

Pair = tuple[int, int]


@final
@dataclass(frozen=True)
class ConvGeometry:
    """What a convolution's members share, each ``(vertical, horizontal)``."""

    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair  # of the images that go in
    kernel: Pair

    @property
    def steps(self) -> tuple[Pair, Pair, Pair]:
        """The arguments that every raw op takes."""
        return self.stride, self.padding, self.dilation


def task_conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    backend: str = "reference",
) -> Tensor:
    """`torch.nn.functional.conv2d` (one group) with weights for every task.

    The kernels keep images channels-last in memory: other layouts are taken, and copied.

    Args:
        x: ``[tasks, examples, in, height, width]``.
        w: ``[tasks, out, in, kernel height, kernel width]``. Weights that all tasks share are
            expanded, and not copied.
        b: ``[tasks, out]``, or None.
        stride, padding, dilation: pixels, ``(vertical, horizontal)`` or one for both.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``[tasks, examples, out, height', width']``, of the dtype of x.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), a number is out of
            range, or the backend is unknown or cannot take them.
    """
    op = "task_conv2d"
    shape(op, "x", x, "tasks", "examples", "in", "height", "width")
    shape(op, "w", w, "tasks", "out", x.shape[2], "kernel height", "kernel width")
    shape(op, "b", b, "tasks", w.shape[1])
    geometry = ConvGeometry(
        _pair("stride", stride, least=1),
        _pair("padding", padding, least=0),
        _pair("dilation", dilation, least=1),
        (x.shape[3], x.shape[4]),
        (w.shape[3], w.shape[4]),
    )
    _check_covers(geometry)
    found = prepared(op, backend, x=x, w=w, b=b)
    if found is None:
        return reference_task_conv2d(x, w, b, *geometry.steps)
    return native_task_conv2d(found, x, w, b, geometry)


def reference_task_conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
) -> Tensor:
    """The definition in PyTorch: the tasks are the groups of one convolution."""
    tasks = len(x)
    if tasks == 0:  # a convolution cannot have no groups, but it can have no examples
        bias = None if b is None else b.sum(0)
        y = F.conv2d(x.flatten(0, 1), w.sum(0), bias, stride, padding, dilation)
        return y.unflatten(0, (0, x.shape[1]))
    groups = x.transpose(0, 1).flatten(1, 2)
    bias = None if b is None else b.flatten()
    y = F.conv2d(groups, w.flatten(0, 1), bias, stride, padding, dilation, groups=tasks)
    return y.unflatten(1, (tasks, w.shape[1])).transpose(0, 1)


def native_task_conv2d(
    kernels: Kernels, x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """`task_conv2d` by the kernels of a backend."""
    y: Tensor = Conv2d.apply(kernels, x, w, b, geometry)
    return y


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(
            f"task_conv2d: {name}={value!r}; it must be an integer >= {least}, or two of them."
        )
    return pair


def _check_covers(geometry: ConvGeometry) -> None:
    """A kernel that is larger than the padded image, or has no pixels, has no output."""
    for axis, name in enumerate(("height", "width")):
        padded = geometry.size[axis] + 2 * geometry.padding[axis]
        covered = geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1
        if geometry.kernel[axis] < 1 or covered > padded:
            raise ValueError(
                f"task_conv2d: w covers {max(covered, 0)} pixels of {name} (its kernel times the "
                f"dilation), and x has {padded} with its padding."
            )


# The family is closed: it is linear in each operand, so that every derivative of a member is
# another. dgrad(g, w) is the gradient of x; wgrad(g, x) those of w and b.


@final
class Conv2d(TaskFunction):
    """``x * w + b``."""

    @staticmethod
    def forward(
        kernels: Kernels, x: Tensor, w: Tensor, b: Tensor | None, geometry: ConvGeometry
    ) -> Tensor:
        y: Tensor = kernels.task_conv2d(x, w, b, *geometry.steps)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, x, w, _, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        ctx.out = output.shape

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return (None,) * 5
        x, w = ctx.saved_tensors
        _, to_x, to_w, to_b, _ = ctx.needs_input_grad
        gx = Conv2dDgrad.apply(ctx.kernels, g, w, ctx.geometry) if to_x else None
        gw = gb = None
        if to_w:
            gw, gb = Conv2dWgrad.apply(ctx.kernels, g, x, ctx.geometry, to_b)
        elif to_b:
            gb = g.sum((-4, -2, -1))
        return None, gx, gw, gb, None

    @staticmethod
    def jvp(
        ctx: Any, _kernels: None, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, _geo: Any
    ) -> Any:
        x, w = ctx.saved_tensors
        t = None
        if tx is not None:
            t, tb = Conv2d.apply(ctx.kernels, tx, w, tb, ctx.geometry), None
        if tw is not None:
            t, tb = plus(t, Conv2d.apply(ctx.kernels, x, tw, tb, ctx.geometry)), None
        return _spread(tb, ctx.out) if t is None and tb is not None else t


@final
class Conv2dDgrad(TaskFunction):
    """The gradient of x, ``[tasks, examples, in, height, width]``."""

    @staticmethod
    def forward(kernels: Kernels, g: Tensor, w: Tensor, geometry: ConvGeometry) -> Tensor:
        gx: Tensor = kernels.task_conv2d_dgrad(g, w, *geometry.steps, geometry.size)
        return gx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, g, w, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, w)
        ctx.save_for_forward(g, w)

    @staticmethod
    def backward(ctx: Any, h: Tensor | None) -> Any:
        if h is None:
            return None, None, None, None
        g, w = ctx.saved_tensors
        _, to_g, to_w, _ = ctx.needs_input_grad
        gg = Conv2d.apply(ctx.kernels, h, w, None, ctx.geometry) if to_g else None
        gw = Conv2dWgrad.apply(ctx.kernels, g, h, ctx.geometry, False)[0] if to_w else None
        return None, gg, gw, None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tg: Tensor | None, tw: Tensor | None, _geo: Any) -> Any:
        g, w = ctx.saved_tensors
        return plus(
            None if tg is None else Conv2dDgrad.apply(ctx.kernels, tg, w, ctx.geometry),
            None if tw is None else Conv2dDgrad.apply(ctx.kernels, g, tw, ctx.geometry),
        )


@final
class Conv2dWgrad(TaskFunction):
    """The gradient of w, in its shape, and if `bias` that of b, ``[tasks, out]``."""

    @staticmethod
    def forward(
        kernels: Kernels, g: Tensor, x: Tensor, geometry: ConvGeometry, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        gw, gb = kernels.task_conv2d_wgrad(g, x, *geometry.steps, geometry.kernel, bias)
        return gw, gb if bias else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, g, x, ctx.geometry, ctx.bias = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x, *output)

    @staticmethod
    def backward(ctx: Any, hw: Tensor | None, hb: Tensor | None) -> Any:
        g, x = ctx.saved_tensors
        _, to_g, to_x, _, _ = ctx.needs_input_grad
        gg = gx = None
        if to_g and hw is not None:
            gg = Conv2d.apply(ctx.kernels, x, hw, hb, ctx.geometry)
        elif to_g and hb is not None:
            gg = _spread(hb, g.shape)
        if to_x and hw is not None:
            gx = Conv2dDgrad.apply(ctx.kernels, g, hw, ctx.geometry)
        return None, gg, gx, None, None

    @staticmethod
    def jvp(
        ctx: Any, _kernels: None, tg: Tensor | None, tx: Tensor | None, _geo: Any, _bias: None
    ) -> Any:
        g, x, *outputs = ctx.saved_tensors
        tw = tb = None
        if tg is not None:
            tw, tb = Conv2dWgrad.apply(ctx.kernels, tg, x, ctx.geometry, ctx.bias)
        if tx is not None:
            tw = plus(tw, Conv2dWgrad.apply(ctx.kernels, g, tx, ctx.geometry, False)[0])
        return filled((tw, tb), outputs)


def _spread(b: Tensor, like: Any) -> Tensor:
    """``[tasks, out]`` over examples and pixels."""
    return b[..., None, :, None, None].expand(like)
