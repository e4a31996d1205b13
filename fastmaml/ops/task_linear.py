# ruff: noqa: D102
"""A linear layer of all tasks, each with its own weights: `task_linear`."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from fastmaml.ops._checks import prepared, shape
from fastmaml.ops._function import TaskFunction, filled, plus
from fastmaml.ops._load import Kernels
from fastmaml.ops.task_act import ActBwd, act_code, at_input, reference_task_act


def task_linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    activation: str | None = None,
    backend: str = "reference",
) -> Tensor:
    """``y[t] = a(x[t] w[t]ᵀ + b[t])``: `torch.nn.functional.linear` with weights for every task.

    Args:
        x: ``[tasks, rows, in]``.
        w: ``[tasks, out, in]``. Weights that all tasks share are expanded, and not copied.
        b: ``[tasks, out]``, or None.
        activation: None or a name of `task_act`, applied in the same pass.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``[tasks, rows, out]``, of the dtype of x.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), or the activation
            or the backend is unknown or cannot take them.
    """
    act = act_code("task_linear", activation)
    shape("task_linear", "x", x, "tasks", "rows", "in")
    shape("task_linear", "w", w, "tasks", "out", x.shape[2])
    shape("task_linear", "b", b, "tasks", w.shape[1])
    found = prepared("task_linear", backend, x=x, w=w, b=b)
    if found is None:
        return reference_task_linear(x, w, b, activation)
    return native_task_linear(found, x, w, b, act)


def reference_task_linear(
    x: Tensor, w: Tensor, b: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """The definition in PyTorch."""
    y = x @ w.mT
    if b is not None:
        y = y + b.unsqueeze(1)
    return y if activation is None else reference_task_act(y, activation)


def native_task_linear(
    kernels: Kernels, x: Tensor, w: Tensor, b: Tensor | None = None, act: int = 0
) -> Tensor:
    """The op of a backend, by the activation's code."""
    y: Tensor = Linear.apply(kernels, x, w, b, act)[0]
    return y


# The family is closed: it is linear in each operand, so that every derivative of a member is
# another. With z = x wᵀ + b:   dgrad(g, w) = g w,   wgrad(g, x) = (gᵀ x, Σ g over rows).


@final
class Linear(TaskFunction):
    """``a(z)``, and z itself where the derivative of the activation is taken there, else None."""

    @staticmethod
    def forward(
        kernels: Kernels, x: Tensor, w: Tensor, b: Tensor | None, act: int
    ) -> tuple[Tensor, Tensor | None]:
        y, z = kernels.task_linear(x, w, b, act)
        return y, z if at_input(act) else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.kernels, x, w, _, ctx.act = inputs
        y, z = output
        ctx.set_materialize_grads(False)
        saved = (x, w, (y if z is None else z) if ctx.act else None)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, gz: Tensor | None) -> Any:
        x, w, s = ctx.saved_tensors
        if g is not None and ctx.act:
            g = ActBwd.apply(ctx.kernels, g, s, ctx.act)
        g = plus(g, gz)
        if g is None:
            return (None,) * 5
        _, to_x, to_w, to_b, _ = ctx.needs_input_grad
        gx = LinearDgrad.apply(ctx.kernels, g, w) if to_x else None
        gw = gb = None
        if to_w:
            gw, gb = LinearWgrad.apply(ctx.kernels, g, x, to_b)
        elif to_b:
            gb = g.sum(-2)
        return None, gx, gw, gb, None

    @staticmethod
    def jvp(
        ctx: Any,
        _kernels: None,
        tx: Tensor | None,
        tw: Tensor | None,
        tb: Tensor | None,
        _act: None,
    ) -> Any:
        x, w, s = ctx.saved_tensors
        t = None
        if tx is not None:
            t, tb = Linear.apply(ctx.kernels, tx, w, tb, 0)[0], None
        if tw is not None:
            t, tb = plus(t, Linear.apply(ctx.kernels, x, tw, tb, 0)[0]), None
        if t is None and tb is not None:
            t = tb.unsqueeze(1).expand(-1, x.shape[1], -1)
        ty = ActBwd.apply(ctx.kernels, t, s, ctx.act) if ctx.act else t
        return ty, t if at_input(ctx.act) else None


@final
class LinearDgrad(TaskFunction):
    """``g w``, ``[tasks, rows, in]``."""

    @staticmethod
    def forward(kernels: Kernels, g: Tensor, w: Tensor) -> Tensor:
        gx: Tensor = kernels.task_linear_dgrad(g, w)
        return gx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, g, w = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, w)
        ctx.save_for_forward(g, w)

    @staticmethod
    def backward(ctx: Any, h: Tensor | None) -> Any:
        if h is None:
            return None, None, None
        g, w = ctx.saved_tensors
        _, to_g, to_w = ctx.needs_input_grad
        gg = Linear.apply(ctx.kernels, h, w, None, 0)[0] if to_g else None
        gw = LinearWgrad.apply(ctx.kernels, g, h, False)[0] if to_w else None
        return None, gg, gw

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tg: Tensor | None, tw: Tensor | None) -> Any:
        g, w = ctx.saved_tensors
        return plus(
            None if tg is None else LinearDgrad.apply(ctx.kernels, tg, w),
            None if tw is None else LinearDgrad.apply(ctx.kernels, g, tw),
        )


@final
class LinearWgrad(TaskFunction):
    """``gᵀ x``, ``[tasks, out, in]``, and ``Σ g`` over rows, ``[tasks, out]``, if `bias`."""

    @staticmethod
    def forward(kernels: Kernels, g: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
        gw, gb = kernels.task_linear_wgrad(g, x, bias)
        return gw, gb if bias else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, g, x, ctx.bias = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x, *output)

    @staticmethod
    def backward(ctx: Any, hw: Tensor | None, hb: Tensor | None) -> Any:
        g, x = ctx.saved_tensors
        _, to_g, to_x, _ = ctx.needs_input_grad
        gg = gx = None
        if to_g and hw is not None:
            gg = Linear.apply(ctx.kernels, x, hw, hb, 0)[0]
        elif to_g and hb is not None:
            gg = hb.unsqueeze(-2).expand_as(g)
        if to_x and hw is not None:
            gx = LinearDgrad.apply(ctx.kernels, g, hw)
        return None, gg, gx, None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tg: Tensor | None, tx: Tensor | None, _bias: None) -> Any:
        g, x, *outputs = ctx.saved_tensors
        tw = tb = None
        if tg is not None:
            tw, tb = LinearWgrad.apply(ctx.kernels, tg, x, ctx.bias)
        if tx is not None:
            tw = plus(tw, LinearWgrad.apply(ctx.kernels, g, tx, False)[0])
        return filled((tw, tb), outputs)
