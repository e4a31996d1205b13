"""One matrix product a task: C[t] = act(A[t] · B[t] + bias[t]), any strides."""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

import torch

import triton
import triton.language as tl

from .activations import activate
from .fold import fold
from .launch import Launch, Product, grid
from .tiles import Tile, splits

# Row tiles that share a column of B's tiles go together, to find them in the L2 cache.
GROUP = 8


@triton.jit(do_not_specialize=["tasks", "chunk"])
def gemm_kernel(
    a, b, c, saved, bias, row_sum,
    tasks, M, N, K, chunk, splits,
    at, am, ak, bt, bk, bn, biast, biasn,
    ACT: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Program = (task, part of k, tile), the task slowest: its weights stay in the L2 cache.

    c is [splits, tasks, M, N] and row_sum, the sums over k of A, [splits, tasks, M].
    """
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    program = tl.program_id(0)
    tile, outer = program % (rows * columns), program // (rows * columns)
    split, task = outer % splits, outer // splits
    first = (tile // (GROUP * columns)) * GROUP
    height = tl.minimum(rows - first, GROUP)
    row = first + (tile % (GROUP * columns)) % height
    column = (tile % (GROUP * columns)) // height

    m = row * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    low = split * chunk
    high = tl.minimum(low + chunk, K)
    # 64-bit from here on: a task's slice may lie beyond 2^31 elements.
    a_rows = a + task.to(tl.int64) * at + m.to(tl.int64)[:, None] * am
    b_columns = b + task.to(tl.int64) * bt + n.to(tl.int64)[None, :] * bn
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(low, high, BK):
        k = start + tl.arange(0, BK)
        wide = k.to(tl.int64)
        at_a = (m < M)[:, None] & (k < high)[None, :]
        at_b = (k < high)[:, None] & (n < N)[None, :]
        x = tl.load(a_rows + wide[None, :] * ak, mask=at_a, other=0.0)
        y = tl.load(b_columns + wide[:, None] * bk, mask=at_b, other=0.0)
        total = tl.dot(x, y, total, input_precision=PRECISION)

    if bias is not None:
        offset = task.to(tl.int64) * biast + n.to(tl.int64) * biasn
        total += tl.load(bias + offset, mask=n < N, other=0.0).to(tl.float32)[None, :]
    batch = split.to(tl.int64) * tasks + task
    offset = (batch * M + m)[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    if saved is not None:
        tl.store(saved + offset, total.to(saved.dtype.element_ty), mask=inside)
    tl.store(c + offset, activate(total, ACT).to(c.dtype.element_ty), mask=inside)

    # Again over A, which the caches still hold, so that the first loop feeds tensor cores only.
    if row_sum is not None and column == 0:
        sums = tl.zeros((BM,), dtype=tl.float32)
        for start in range(low, high, BK):
            k = start + tl.arange(0, BK)
            at_a = (m < M)[:, None] & (k < high)[None, :]
            x = tl.load(a_rows + k.to(tl.int64)[None, :] * ak, mask=at_a, other=0.0)
            sums += tl.sum(x.to(tl.float32), axis=1)
        sums = sums.to(row_sum.dtype.element_ty)
        tl.store(row_sum + batch * M + m, sums, mask=m < M)


def gemm(
    product: Product,
    tile: Tile,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    saved: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    row_sum: torch.Tensor | None = None,
    act: int = 0,
    parts: int | None = None,
) -> list[Launch]:
    """Launches for c = act(a @ b + bias): a [T, M, K], b [T, K, N], bias [T, N], dense c [T, M, N].

    ``saved`` receives the input of the activation, ``row_sum`` [T, M] the sums of a's rows. With
    ``parts`` (default: what fills the device) more than 1, k is cut and neither bias nor activation
    may be asked for.
    """
    parts = splits(product, tile) if parts is None else parts
    out, sums = c, row_sum
    if parts > 1:
        out = c.new_empty((parts, *c.shape), dtype=torch.float32)
        sums = row_sum if row_sum is None else c.new_empty((parts, *row_sum.shape), dtype=out.dtype)
    arguments = {
        "a": a,
        "b": b,
        "c": out,
        "saved": saved,
        "bias": bias,
        "row_sum": sums,
        "tasks": product.tasks,
        "M": product.m,
        "N": product.n,
        "K": product.k,
        "chunk": triton.cdiv(triton.cdiv(product.k, parts), tile.k) * tile.k,
        "splits": parts,
        **dict(zip(("at", "am", "ak"), a.stride(), strict=True)),
        **dict(zip(("bt", "bk", "bn"), b.stride(), strict=True)),
        **dict(zip(("biast", "biasn"), (0, 0) if bias is None else bias.stride(), strict=True)),
        "ACT": act,
        "PRECISION": product.precision,
        "GROUP": GROUP,
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
    }
    main = Launch(gemm_kernel, grid(product, tile, parts), arguments, tile.warps, tile.stages)
    return [main] if parts == 1 else [main, fold(out, c, sums, row_sum)]
