# ruff: noqa: D102
"""Rows of every task's table: `task_embedding`."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fastmaml.ops._checks import prepared, same_device, same_tasks, shape
from fastmaml.ops._function import TaskFunction
from fastmaml.ops._load import Kernels


def task_embedding(
    w: Tensor, ids: Tensor, *, padding_idx: int | None = None, backend: str = "reference"
) -> Tensor:
    """The rows ``w[t, ids[t, n]]``.

    `torch.nn.functional.embedding` with a table for every task. Its gradient is a whole table, zero
    in the rows that no id names; rows are summed in one order, whatever the number of threads.

    Args:
        w: ``[tasks, rows, features]``; a table that all share may be expanded, nothing copies it.
        ids: ``[tasks, examples]`` int64, each in ``[0, rows)``.
        padding_idx: a row that is a constant: it gets no gradient and has no tangent; from
            ``-rows``. None for no such row.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``[tasks, examples, features]``, of the dtype of w.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), padding_idx is no
            row, or the backend is unknown or cannot take them.
        RuntimeError: an id is out of range (on the CPU; as PyTorch, an assert on CUDA).
    """
    op = "task_embedding"
    shape(op, "w", w, "tasks", "rows", "features")
    if ids.dtype != torch.int64:
        raise ValueError(f"{op}: ids is {ids.dtype}; it must be torch.int64 (ids.long()).")
    same_device(op, "ids", ids, "w", w)
    same_tasks(op, "ids", ids, "w", w)
    shape(op, "ids", ids, "tasks", "examples")
    rows = w.shape[1]
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"{op}: padding_idx={padding_idx}; w has {rows} rows.")
    found = prepared(op, backend, w=w)
    if found is None:
        return reference_task_embedding(w, ids, padding_idx)
    return native_task_embedding(found, w, ids, padding_idx)


def reference_task_embedding(w: Tensor, ids: Tensor, padding_idx: int | None = None) -> Tensor:
    """The definition in PyTorch."""
    y = w.gather(1, ids.unsqueeze(2).expand(*ids.shape, w.shape[2]))
    return y if padding_idx is None else torch.where(_varies(w, ids, padding_idx), y, y.detach())


def native_task_embedding(
    kernels: Kernels, w: Tensor, ids: Tensor, padding_idx: int | None = None
) -> Tensor:
    """`task_embedding` by the kernels of a backend."""
    varies = None if padding_idx is None else _varies(w, ids, padding_idx)
    y: Tensor = Embedding.apply(kernels, w, ids, varies)
    return y


def _varies(w: Tensor, ids: Tensor, padding_idx: int) -> Tensor:
    """``[tasks, examples, 1]``: which rows are no padding."""
    return (ids != padding_idx % w.shape[1]).unsqueeze(2)


@final
class Embedding(TaskFunction):
    """Rows of tables, by ids; linear in the tables, but constant where `varies` is False."""

    @staticmethod
    def forward(kernels: Kernels, w: Tensor, ids: Tensor, varies: Tensor | None) -> Tensor:
        y: Tensor = kernels.task_embedding(w, ids)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, w, *tensors = inputs
        ctx.rows = w.shape[1]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        ids, varies = ctx.saved_tensors
        g = g if varies is None else g * varies
        return None, EmbeddingGrad.apply(ctx.kernels, g, ids, ctx.rows), None, None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tw: Tensor, *_: None) -> Any:
        ids, varies = ctx.saved_tensors
        t = Embedding.apply(ctx.kernels, tw, ids, None)
        return t if varies is None else t * varies


@final
class EmbeddingGrad(TaskFunction):
    """The transpose: tables of sums of rows, by ids."""

    @staticmethod
    def forward(kernels: Kernels, g: Tensor, ids: Tensor, rows: int) -> Tensor:
        gw: Tensor = kernels.task_embedding_grad(g, ids, rows)
        return gw

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, _, ids, ctx.rows = inputs
        ctx.save_for_backward(ids)
        ctx.save_for_forward(ids)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        return None, Embedding.apply(ctx.kernels, h, *ctx.saved_tensors, None), None, None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tg: Tensor, _ids: None, _rows: None) -> Any:
        return EmbeddingGrad.apply(ctx.kernels, tg, *ctx.saved_tensors, ctx.rows)
