# ruff: noqa: D102
"""The mean squared error of every task: `task_mse`."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from fastmaml.ops._checks import prepared, shape
from fastmaml.ops._function import TaskFunction, bits, plus, third_derivative, wanted
from fastmaml.ops._load import Kernels


def task_mse(x: Tensor, target: Tensor, *, backend: str = "reference") -> Tensor:
    """Per task the mean of ``(x - target)²``: `torch.nn.functional.mse_loss` of every task.

    Args:
        x: ``[tasks, ...]``.
        target: the shape of x; it has a gradient too.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``[tasks]``, of the dtype of x; nan where a task has no elements.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), or the backend is
            unknown or cannot take them.
    """
    if not x.ndim:
        raise ValueError("task_mse: x has no tasks dimension; its shape must be [tasks, ...].")
    shape("task_mse", "target", target, "tasks", *x.shape[1:])
    found = prepared("task_mse", backend, x=x, target=target)
    return reference_task_mse(x, target) if found is None else native_task_mse(found, x, target)


def reference_task_mse(x: Tensor, target: Tensor) -> Tensor:
    """The definition in PyTorch."""
    return (x - target).square().flatten(1).mean(1) if x.ndim > 1 else (x - target).square()


def native_task_mse(kernels: Kernels, x: Tensor, target: Tensor) -> Tensor:
    """`task_mse` by the kernels of a backend."""
    losses: Tensor = Mse.apply(kernels, x, target)
    return losses


# All depends on x - target alone: what holds for x holds for target with the opposite sign.


@final
class Mse(TaskFunction):
    """The losses ``[tasks]``: each task's mean of (x − target)²."""

    @staticmethod
    def forward(kernels: Kernels, x: Tensor, target: Tensor) -> Tensor:
        losses: Tensor = kernels.task_mse(x, target)
        return losses

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, x, target = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, target)
        ctx.save_for_forward(x, target, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        if g is None:
            return None, None, None
        gx = MseBwd.apply(ctx.kernels, g, *ctx.saved_tensors)
        return None, gx, _minus(gx) if ctx.needs_input_grad[2] else None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tx: Tensor | None, tt: Tensor | None) -> Any:
        *saved, losses = ctx.saved_tensors  # they stand where a cotangent is not read
        h = plus(tx, _minus(tt))
        return MseBwd2.apply(ctx.kernels, h, losses, *saved, 0b1)[0]


@final
class MseBwd(TaskFunction):
    """``2 g (x - target) / elements``: the gradient of x."""

    @staticmethod
    def forward(kernels: Kernels, g: Tensor, x: Tensor, target: Tensor) -> Tensor:
        gx: Tensor = kernels.task_mse_bwd(g, x, target)
        return gx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, h: Tensor | None) -> Any:
        if h is None:
            return (None,) * 4
        _, to_g, to_x, to_target = ctx.needs_input_grad
        need = bits(to_g, to_x or to_target)
        gg, gx = MseBwd2.apply(ctx.kernels, h, *ctx.saved_tensors, need)
        return None, gg, gx, _minus(gx) if to_target else None

    @staticmethod
    def jvp(
        ctx: Any, _kernels: None, tg: Tensor | None, tx: Tensor | None, tt: Tensor | None
    ) -> Any:
        g, *saved = ctx.saved_tensors
        t = None if tg is None else MseBwd.apply(ctx.kernels, tg, *saved)
        h = plus(tx, _minus(tt))
        if h is not None:
            t = plus(t, MseBwd2.apply(ctx.kernels, h, g, *saved, 0b10)[1])
        return t


@final
class MseBwd2(TaskFunction):
    """``J h``, ``[tasks]``, and the gradient of ``<g, J h>`` by x."""

    @staticmethod
    def forward(
        kernels: Kernels, h: Tensor, g: Tensor, x: Tensor, target: Tensor, need: int
    ) -> tuple[Tensor | None, ...]:
        return wanted(kernels.task_mse_bwd2(h, g, x, target, need), need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, h, _, *tensors, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, *tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, second: Tensor | None) -> Any:
        if second is not None:
            third_derivative("task_mse")
        if c is None:
            return (None,) * 6
        h, *saved = ctx.saved_tensors
        _, to_h, _, to_x, to_target, _ = ctx.needs_input_grad
        of_h = MseBwd.apply(ctx.kernels, c, *saved) if to_h else None
        of_x = None
        if to_x or to_target:
            of_x = MseBwd2.apply(ctx.kernels, h, c, *saved, 0b10)[1]
        return None, of_h, None, of_x, _minus(of_x) if to_target else None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        third_derivative("task_mse")


def _minus(x: Tensor | None) -> Tensor | None:
    return None if x is None else -x
