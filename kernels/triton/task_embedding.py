"""`task_embedding`, rows of each task's table, and its gradient, without atomic additions."""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

import contextlib

import torch

import triton
import triton.language as tl

from . import checks
from .launch import Launch

ROWS, WIDEST = 16, 128


@triton.jit(do_not_specialize=["N", "blocks"])
def embedding_kernel(w, ids, y, wt, wr, wd, N, R, D, blocks, BN: tl.constexpr, BD: tl.constexpr):
    """y [T, N, D] = w [T, R, D] at ids [T, N]; NaN for ids that the table does not have."""
    program = tl.program_id(0)
    task = (program // blocks).to(tl.int64)
    n = program % blocks * BN + tl.arange(0, BN)
    row = tl.load(ids + task * N + n, mask=n < N, other=0)
    there = (row >= 0) & (row < R)
    for first in range(0, D, BD):
        d = first + tl.arange(0, BD)
        inside = (n < N)[:, None] & (d < D)[None, :]
        at = w + task * wt + row[:, None] * wr + d.to(tl.int64)[None, :] * wd
        found = tl.load(at, mask=inside & there[:, None], other=float("nan"))
        tl.store(y + (task * N + n)[:, None] * D + d[None, :], found, mask=inside)


@triton.jit(do_not_specialize=["N", "R", "blocks"])
def embedding_grad_kernel(
    g, ids, order, ends, gw, gt, gn, gd, N, R, D, blocks, BN: tl.constexpr, BD: tl.constexpr
):
    """gw [T, R, D] += g [T, N, D] at ids, which are sorted: the first of equals adds them all.

    ``order`` are their places in g, ``ends`` where the run of equals ends.
    """
    program = tl.program_id(0)
    d = program % blocks * BD + tl.arange(0, BD)
    place = (program // blocks).to(tl.int64)
    task, n = place // N, place % N
    row = tl.load(ids + place)
    before = tl.load(ids + place - 1, mask=n > 0, other=-1)
    if (row != before) & (row >= 0) & (row < R):
        kind = tl.float64 if g.dtype.element_ty == tl.float64 else tl.float32
        total = tl.zeros((BD,), kind)
        end = tl.load(ends + place)
        for first in range(n, end, BN):
            i = first + tl.arange(0, BN)
            which = tl.load(order + task * N + i, mask=i < end, other=0)
            at = g + task * gt + which[:, None] * gn + d.to(tl.int64)[None, :] * gd
            inside = (i < end)[:, None] & (d < D)[None, :]
            total += tl.sum(tl.load(at, mask=inside, other=0.0).to(kind), 0)
        tl.store(gw + (task * R + row) * D + d, total.to(gw.dtype.element_ty), mask=d < D)


@torch.library.custom_op("fastmaml_triton::task_embedding", mutates_args=())
def task_embedding(w: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The rows ``ids`` [tasks, tokens] (int64) of ``w`` [tasks, rows, size], any strides.

    A task stride of 0 shares the table, which is never copied. An id that the table does not have
    gives NaN.

    Returns:
        [tasks, tokens, size].

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    checks.tensors("task_embedding", embedding_kernel, {"w": 3}, w=w)
    check_ids("task_embedding", ids, w.shape[:1], w.device)
    y = w.new_empty((*ids.shape, w.shape[2]))
    run(embedding(w, ids.contiguous(), y), w.device)
    return y


@task_embedding.register_fake
def _(w: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return w.new_empty((*ids.shape, w.shape[2]))


@torch.library.custom_op("fastmaml_triton::task_embedding_grad", mutates_args=())
def task_embedding_grad(g: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """The gradient of w [tasks, rows, size]: g [tasks, tokens, size] added up at ``ids``.

    Sorts the ids, so that each row is added by one program, always in the same order. An id that
    the table does not have adds nothing.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    op = "task_embedding_grad"
    checks.tensors(op, embedding_grad_kernel, {"g": 3}, g=g)
    check_ids(op, ids, g.shape[:2], g.device)
    checks.limits(op, rows=rows)
    gw = g.new_zeros((g.shape[0], rows, g.shape[2]))
    run(embedding_grad(g, ids.contiguous(), gw), g.device)
    return gw


@task_embedding_grad.register_fake
def _(g: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    return g.new_empty((g.shape[0], rows, g.shape[2]))


def check_ids(op: str, ids: torch.Tensor, wanted: torch.Size, device: torch.device) -> None:
    """int64 [tasks, tokens], of which ``wanted`` is known, on ``device``."""
    if ids.dim() != 2 or ids.dtype != torch.int64 or ids.device != device:
        found = f"{ids.dtype} {list(ids.shape)} on {ids.device}"
        raise ValueError(f"{op}: ids is {found}, not int64 [tasks, tokens] on {device}.")
    checks.sizes(op, "the shape of ids", ids.shape[: len(wanted)], wanted)
    checks.limits(op, tokens=ids.shape[1])


def embedding(w: torch.Tensor, ids: torch.Tensor, y: torch.Tensor) -> Launch:
    """Writes y."""
    tasks, tokens = ids.shape
    blocks = triton.cdiv(tokens, ROWS)
    arguments = {
        "w": w,
        "ids": ids,
        "y": y,
        **dict(zip(("wt", "wr", "wd"), w.stride(), strict=True)),
        "N": tokens,
        "R": w.shape[1],
        "D": w.shape[2],
        "blocks": blocks,
        "BN": ROWS,
        "BD": WIDEST,
    }
    return Launch(embedding_kernel, tasks * blocks, arguments)


def embedding_grad(g: torch.Tensor, ids: torch.Tensor, gw: torch.Tensor) -> Launch:
    """Adds to gw, which is 0; ids are dense, so what is sorted is."""
    tasks, tokens = ids.shape
    ordered, order = torch.sort(ids, dim=1, stable=True)
    ends = torch.searchsorted(ordered, ordered, right=True)
    blocks = triton.cdiv(g.shape[2], WIDEST)
    arguments = {
        "g": g,
        "ids": ordered,
        "order": order,
        "ends": ends,
        "gw": gw,
        **dict(zip(("gt", "gn", "gd"), g.stride(), strict=True)),
        "N": tokens,
        "R": gw.shape[1],
        "D": g.shape[2],
        "blocks": blocks,
        "BN": ROWS,
        "BD": WIDEST,
    }
    return Launch(embedding_grad_kernel, tasks * tokens * blocks, arguments)


def run(launch: Launch, device: torch.device) -> None:
    """On ``device``."""
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        launch.run()
