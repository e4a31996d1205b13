# ruff: noqa: D102
"""Batch normalisation of all tasks, fused with ReLU and max-pooling: `task_batch_norm`."""

from __future__ import annotations

from typing import Any, final

import torch.nn.functional as F
from torch import Tensor

from fastmaml.ops._checks import prepared, shape
from fastmaml.ops._function import TaskFunction, bits, filled, plus, third_derivative, wanted
from fastmaml.ops._load import Kernels


def task_batch_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float = 1e-5,
    relu: bool = False,
    pool: bool = False,
    backend: str = "reference",
) -> Tensor:
    """``pool(relu(x̂ w + b))``, x̂ normalised over the examples and pixels of each task.

    Batch normalisation (Ioffe and Szegedy, 2015) with the batch's own statistics and the biased
    variance, as `torch.nn.functional.batch_norm` in training; derivatives go through the
    statistics. The ReLU and the pooling (the maximum of windows of 2 x 2, an odd last row or column
    left out) come in the same pass. Images are kept channels-last in memory.

    Args:
        x: ``[tasks, examples, channels, height, width]`` or, without `pool`,
            ``[tasks, examples, channels]``.
        w: ``[tasks, channels]``, or None for 1.
        b: ``[tasks, channels]``, or None for 0.
        eps: what is added to the variance.
        relu: whether a ReLU follows.
        pool: whether max-pooling follows that.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        The shape of x, with height and width halved (rounded down) by `pool`; of the dtype of x.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), eps is negative, or
            the backend is unknown or cannot take them.
    """
    op = "task_batch_norm"
    flat = x.ndim == 3
    if flat and not pool:
        x = x[..., None, None]
    shape(op, "x", x, "tasks", "examples", "channels", "height", "width")
    shape(op, "w", w, "tasks", x.shape[2])
    shape(op, "b", b, "tasks", x.shape[2])
    if pool and min(x.shape[3:]) < 2:
        raise ValueError(f"{op}: x has shape {list(x.shape)}; pool needs 2 x 2 pixels.")
    if not eps >= 0:
        raise ValueError(f"{op}: eps={eps}; it must not be negative.")
    found = prepared(op, backend, x=x, w=w, b=b)
    if found is None:
        y = reference_task_batch_norm(x, w, b, eps, relu, pool)
    else:
        y = native_task_batch_norm(found, x, w, b, eps, relu, pool)
    return y[..., 0, 0] if flat else y


def reference_task_batch_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """The definition in PyTorch, of images."""
    over = (1, 3, 4)
    centred = x - x.mean(over, keepdim=True)
    y = centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()
    if w is not None:
        y = y * w[:, None, :, None, None]
    if b is not None:
        y = y + b[:, None, :, None, None]
    if relu:
        y = F.relu(y)
    if not pool:
        return y
    return F.max_pool2d(y.flatten(0, 1), 2).unflatten(0, y.shape[:2])


def native_task_batch_norm(
    kernels: Kernels,
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """The op of a backend, of images."""
    y: Tensor = BatchNorm.apply(kernels, x, w, b, eps, relu, pool)[0]
    return y


@final
class BatchNorm(TaskFunction):
    """The result, and what its derivatives read: mean, 1/std, and what the maxima and ReLU chose.

    Those three are data to the other members, which account for what the first two owe to x.
    """

    @staticmethod
    def forward(
        kernels: Kernels,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        eps: float,
        relu: bool,
        pool: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, mean, rstd, index = kernels.task_batch_norm(x, w, b, eps, relu, pool)
        return y, mean, rstd, index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernels, x, w, _, _, *ctx.fused = inputs
        y, *data = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*data)
        ctx.save_for_backward(x, w, *data)
        ctx.save_for_forward(x, w, *data, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: None) -> Any:
        if g is None:
            return (None,) * 7
        need = bits(*ctx.needs_input_grad[1:4])
        grads = BatchNormBwd.apply(ctx.kernels, g, *ctx.saved_tensors, *ctx.fused, need)
        return None, *grads, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, _kernels: None, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, *_: None
    ) -> Any:
        *saved, y = ctx.saved_tensors  # y stands where a cotangent is asked for and not read
        t = BatchNormBwd2.apply(ctx.kernels, tx, tw, tb, y, *saved, *ctx.fused, 0b1)[0]
        return t, None, None, None


@final
class BatchNormBwd(TaskFunction):
    """The gradients of x, w and b: ``Jᵀ g``."""

    @staticmethod
    def forward(
        kernels: Kernels,
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        index: Tensor,
        relu: bool,
        pool: bool,
        need: int,
    ) -> tuple[Tensor | None, ...]:
        return wanted(
            kernels.task_batch_norm_bwd(g, x, w, mean, rstd, index, relu, pool, need), need
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, *tensors, relu, pool, ctx.need = inputs
        ctx.fused = relu, pool
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> Any:
        need = bits(*ctx.needs_input_grad[1:4])
        grads: Any = (None,) * 3
        if any(t is not None for t in h):
            grads = BatchNormBwd2.apply(ctx.kernels, *h, *ctx.saved_tensors, *ctx.fused, need)
        return None, *grads, *(None,) * 6

    @staticmethod
    def jvp(
        ctx: Any, _kernels: None, tg: Tensor | None, tx: Tensor | None, tw: Tensor | None, *_: None
    ) -> Any:
        *outputs, g = ctx.saved_tensors[:4]
        saved = ctx.saved_tensors[4:]
        t: Any = (None,) * 3
        if tg is not None:
            t = BatchNormBwd.apply(ctx.kernels, tg, *saved, *ctx.fused, ctx.need)
        need = (ctx.need & 0b11) << 1  # the gradient of b depends on g alone
        if need and (tx is not None or tw is not None):
            _, of_x, of_w = BatchNormBwd2.apply(
                ctx.kernels, tx, tw, None, g, *saved, *ctx.fused, need
            )
            t = plus(t[0], of_x), plus(t[1], of_w), t[2]
        return filled(t, outputs)


@final
class BatchNormBwd2(TaskFunction):
    """``J h``, and the gradients of ``<g, J h>`` by x and w."""

    @staticmethod
    def forward(
        kernels: Kernels,
        hx: Tensor | None,
        hw: Tensor | None,
        hb: Tensor | None,
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        index: Tensor,
        relu: bool,
        pool: bool,
        need: int,
    ) -> tuple[Tensor | None, ...]:
        return wanted(
            kernels.task_batch_norm_bwd2(hx, hw, hb, g, x, w, mean, rstd, index, relu, pool, need),
            need,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, hx, hw, hb, _, *tensors, relu, pool, _ = inputs
        ctx.fused = relu, pool
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hx, hw, hb, *tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, *second: Tensor | None) -> Any:
        if any(t is not None for t in second):
            third_derivative("task_batch_norm")
        if c is None:
            return (None,) * 13
        hx, hw, hb, *saved = ctx.saved_tensors
        _, to_hx, to_hw, to_hb, _, to_x, to_w, *_ = ctx.needs_input_grad
        of_h: Any = (None,) * 3
        of_x = of_w = None
        if to_hx or to_hw or to_hb:
            of_h = BatchNormBwd.apply(ctx.kernels, c, *saved, *ctx.fused, bits(to_hx, to_hw, to_hb))
        if to_x or to_w:
            _, of_x, of_w = BatchNormBwd2.apply(
                ctx.kernels, hx, hw, hb, c, *saved, *ctx.fused, bits(False, to_x, to_w)
            )
        return None, *of_h, None, of_x, of_w, *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        third_derivative("task_batch_norm")
