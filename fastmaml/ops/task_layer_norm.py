# ruff: noqa: D102
"""Layer normalisation of all tasks: `task_layer_norm`."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from fastmaml.ops._checks import prepared, shape
from fastmaml.ops._function import TaskFunction, bits, filled, plus, third_derivative, wanted
from fastmaml.ops._load import Kernels


def task_layer_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str = "reference",
) -> Tensor:
    """``x̂ w + b``, x̂ normalised over the features of each row (Ba et al., 2016).

    `torch.nn.functional.layer_norm` with a weight and bias for every task. Derivatives go through
    the statistics.

    Args:
        x: ``[tasks, rows, features]``.
        w: ``[tasks, features]``, or None for 1.
        b: ``[tasks, features]``, or None for 0.
        eps: what is added to the (biased) variance.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), eps is negative, or
            the backend is unknown or cannot take them.
    """
    op = "task_layer_norm"
    shape(op, "x", x, "tasks", "rows", "features")
    shape(op, "w", w, "tasks", x.shape[2])
    shape(op, "b", b, "tasks", x.shape[2])
    if not eps >= 0:
        raise ValueError(f"{op}: eps={eps}; it must not be negative.")
    found = prepared(op, backend, x=x, w=w, b=b)
    if found is None:
        return reference_task_layer_norm(x, w, b, eps)
    return native_task_layer_norm(found, x, w, b, eps)


def reference_task_layer_norm(
    x: Tensor, w: Tensor | None = None, b: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """The definition in PyTorch."""
    centred = x - x.mean(2, keepdim=True)
    y = centred * (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    if w is not None:
        y = y * w.unsqueeze(1)
    return y if b is None else y + b.unsqueeze(1)


def native_task_layer_norm(
    kernels: Kernels,
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`task_layer_norm` by the kernels of a backend."""
    y: Tensor = LayerNorm.apply(kernels, x, w, b, eps)[0]
    return y


@final
class LayerNorm(TaskFunction):
    """The result, and what its derivatives read: mean and 1/std.

    Those two are data to the other members, which account for what they owe to x.
    """

    @staticmethod
    def forward(
        kernels: Kernels, x: Tensor, w: Tensor | None, b: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rstd = kernels.task_layer_norm(x, w, b, eps)
        return y, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernels, x, w, _, _ = inputs
        y, *data = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*data)
        ctx.save_for_backward(x, w, *data)
        ctx.save_for_forward(x, w, *data, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: None) -> Any:
        if g is None:
            return (None,) * 5
        need = bits(*ctx.needs_input_grad[1:4])
        return None, *LayerNormBwd.apply(ctx.kernels, g, *ctx.saved_tensors, need), None

    @staticmethod
    def jvp(
        ctx: Any,
        _kernels: None,
        tx: Tensor | None,
        tw: Tensor | None,
        tb: Tensor | None,
        _eps: None,
    ) -> Any:
        *saved, y = ctx.saved_tensors  # y stands where a cotangent is asked for and not read
        t = LayerNormBwd2.apply(ctx.kernels, tx, tw, tb, y, *saved, 0b1)[0]
        return t, None, None


@final
class LayerNormBwd(TaskFunction):
    """The gradients of x, w and b: ``Jᵀ g``."""

    @staticmethod
    def forward(
        kernels: Kernels,
        g: Tensor,
        x: Tensor,
        w: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        need: int,
    ) -> tuple[Tensor | None, ...]:
        return wanted(kernels.task_layer_norm_bwd(g, x, w, mean, rstd, need), need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, *tensors, ctx.need = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> Any:
        need = bits(*ctx.needs_input_grad[1:4])
        grads: Any = (None,) * 3
        if any(t is not None for t in h):
            grads = LayerNormBwd2.apply(ctx.kernels, *h, *ctx.saved_tensors, need)
        return None, *grads, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, _kernels: None, tg: Tensor | None, tx: Tensor | None, tw: Tensor | None, *_: None
    ) -> Any:
        *outputs, g = ctx.saved_tensors[:4]
        saved = ctx.saved_tensors[4:]
        t: Any = (None,) * 3
        if tg is not None:
            t = LayerNormBwd.apply(ctx.kernels, tg, *saved, ctx.need)
        need = (ctx.need & 0b11) << 1  # the gradient of b depends on g alone
        if need and (tx is not None or tw is not None):
            _, of_x, of_w = LayerNormBwd2.apply(ctx.kernels, tx, tw, None, g, *saved, need)
            t = plus(t[0], of_x), plus(t[1], of_w), t[2]
        return filled(t, outputs)


@final
class LayerNormBwd2(TaskFunction):
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
        need: int,
    ) -> tuple[Tensor | None, ...]:
        return wanted(kernels.task_layer_norm_bwd2(hx, hw, hb, g, x, w, mean, rstd, need), need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, hx, hw, hb, _, *tensors, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hx, hw, hb, *tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, *second: Tensor | None) -> Any:
        if any(t is not None for t in second):
            third_derivative("task_layer_norm")
        if c is None:
            return (None,) * 10
        hx, hw, hb, *saved = ctx.saved_tensors
        _, to_hx, to_hw, to_hb, _, to_x, to_w, *_ = ctx.needs_input_grad
        of_h: Any = (None,) * 3
        of_x = of_w = None
        if to_hx or to_hw or to_hb:
            of_h = LayerNormBwd.apply(ctx.kernels, c, *saved, bits(to_hx, to_hw, to_hb))
        if to_x or to_w:
            need = bits(False, to_x, to_w)
            _, of_x, of_w = LayerNormBwd2.apply(ctx.kernels, hx, hw, hb, c, *saved, need)
        return None, *of_h, None, of_x, of_w, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        third_derivative("task_layer_norm")
