# ruff: noqa: D102
"""The mean cross-entropy of every task: `task_cross_entropy`."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fastmaml.ops._checks import prepared, same_device, same_tasks, shape
from fastmaml.ops._function import TaskFunction, bits, plus, third_derivative, wanted
from fastmaml.ops._load import Kernels


def task_cross_entropy(
    x: Tensor, target: Tensor, *, ignore_index: int = -100, backend: str = "reference"
) -> Tensor:
    """Per task the mean of ``-log softmax(x)[target]`` over the targets that are not ignored.

    `torch.nn.functional.cross_entropy` of every task: nan, with a gradient of zero, where all of
    its targets are ignored.

    Args:
        x: ``[tasks, examples, classes]`` logits.
        target: ``[tasks, examples]`` int64, each in ``[0, classes)`` or `ignore_index`.
        ignore_index: marks a target that does not count.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``[tasks]``, of the dtype of x.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), or the backend is
            unknown or cannot take them.
        RuntimeError: a label is out of range (on the CPU; as PyTorch, an assert on CUDA).
    """
    op = "task_cross_entropy"
    shape(op, "x", x, "tasks", "examples", "classes")
    if target.dtype != torch.int64:
        raise ValueError(f"{op}: target is {target.dtype}; it must be torch.int64 (target.long()).")
    same_device(op, "target", target, "x", x)
    same_tasks(op, "target", target, "x", x)
    shape(op, "target", target, "tasks", x.shape[1])
    found = prepared(op, backend, x=x)
    if found is None:
        return reference_task_cross_entropy(x, target, ignore_index)
    return native_task_cross_entropy(found, x, target, ignore_index)


def reference_task_cross_entropy(x: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """The definition in PyTorch."""
    counts = target != ignore_index
    label = torch.where(counts, target, 0).unsqueeze(2)
    each = x.logsumexp(2) - x.gather(2, label).squeeze(2)
    return torch.where(counts, each, 0).sum(1) / counts.sum(1)


def native_task_cross_entropy(
    kernels: Kernels, x: Tensor, target: Tensor, ignore_index: int = -100
) -> Tensor:
    """`task_cross_entropy` by the kernels of a backend."""
    losses: Tensor = CrossEntropy.apply(kernels, x, target, ignore_index)[0]
    return losses


@final
class CrossEntropy(TaskFunction):
    """The losses, and each example's logsumexp: data to the other members, who know what it is."""

    @staticmethod
    def forward(kernels: Kernels, x: Tensor, target: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
        losses, lse = kernels.task_cross_entropy(x, target, ignore)
        return losses, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernels, x, target, ctx.ignore = inputs
        losses, lse = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(x, target, lse)
        ctx.save_for_forward(x, target, lse, losses)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _lse: None) -> Any:
        if g is None:
            return (None,) * 4
        gx = CrossEntropyBwd.apply(ctx.kernels, g, *ctx.saved_tensors, ctx.ignore)
        return None, gx, None, None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, t: Tensor | None, *_: None) -> Any:
        if t is None:
            return None, None
        *saved, losses = ctx.saved_tensors  # they stand where a cotangent is not read
        tangent, _ = CrossEntropyBwd2.apply(ctx.kernels, t, losses, *saved, ctx.ignore, 0b1)
        return tangent, None


@final
class CrossEntropyBwd(TaskFunction):
    """``g (softmax(x) - onehot) / counted``: the gradient of x."""

    @staticmethod
    def forward(
        kernels: Kernels, g: Tensor, x: Tensor, target: Tensor, lse: Tensor, ignore: int
    ) -> Tensor:
        gx: Tensor = kernels.task_cross_entropy_bwd(g, x, target, lse, ignore)
        return gx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, *tensors, ctx.ignore = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, h: Tensor | None) -> Any:
        if h is None:
            return (None,) * 6
        need = bits(*ctx.needs_input_grad[1:3])
        gg, gx = CrossEntropyBwd2.apply(ctx.kernels, h, *ctx.saved_tensors, ctx.ignore, need)
        return None, gg, gx, None, None, None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tg: Tensor | None, tx: Tensor | None, *_: None) -> Any:
        g, *saved = ctx.saved_tensors
        t = None
        if tg is not None:
            t = CrossEntropyBwd.apply(ctx.kernels, tg, *saved, ctx.ignore)
        if tx is not None:
            second = CrossEntropyBwd2.apply(ctx.kernels, tx, g, *saved, ctx.ignore, 0b10)[1]
            t = plus(t, second)
        return t


@final
class CrossEntropyBwd2(TaskFunction):
    """``J h``, ``[tasks]``, and the gradient of ``<g, J h>`` by x."""

    @staticmethod
    def forward(
        kernels: Kernels,
        h: Tensor,
        g: Tensor,
        x: Tensor,
        target: Tensor,
        lse: Tensor,
        ignore: int,
        need: int,
    ) -> tuple[Tensor | None, ...]:
        return wanted(kernels.task_cross_entropy_bwd2(h, g, x, target, lse, ignore, need), need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, h, _, *tensors, ctx.ignore, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, *tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, second: Tensor | None) -> Any:
        if second is not None:
            third_derivative("task_cross_entropy")
        if c is None:
            return (None,) * 8
        h, *saved = ctx.saved_tensors
        _, to_h, _, to_x, *_ = ctx.needs_input_grad
        of_h = of_x = None
        if to_h:
            of_h = CrossEntropyBwd.apply(ctx.kernels, c, *saved, ctx.ignore)
        if to_x:
            of_x = CrossEntropyBwd2.apply(ctx.kernels, h, c, *saved, ctx.ignore, 0b10)[1]
        return None, of_h, None, of_x, *(None,) * 4

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        third_derivative("task_cross_entropy")
