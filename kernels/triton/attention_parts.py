"""What the attention kernels share: where a program works, its scores, its dropped probabilities.

Rows are queries l, columns keys s. Where a helper takes both, they broadcast against each other,
[rows, 1] and [1, keys] or the other way round, so that a kernel may hold its tiles transposed.
"""

# ruff: noqa: N803 (constants of a kernel are capitals)

import triton
import triton.language as tl


@triton.jit
def place(B, H, tiles):
    """This program's tile, and its head: counted over all, then as task, batch and head."""
    program = tl.program_id(0)
    tile, outer = program % tiles, program // tiles
    task, batch, head = outer // H // B, outer // H % B, outer % H
    # 64-bit from here on: offsets may lie beyond 2^31 elements.
    task, batch, head = task.to(tl.int64), batch.to(tl.int64), head.to(tl.int64)
    return tile, outer.to(tl.int64), task, batch, head


@triton.jit
def begin(x, strides, task, batch, head):
    """Where x [T, B, H, ...] has this head's matrix."""
    return x + task * strides[0] + batch * strides[1] + head * strides[2]


@triton.jit
def load(matrix, row, stride, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[row, BLOCK] of a matrix of ``rows`` x WIDTH with a dense last dimension; 0 outside."""
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(matrix + at, mask=inside, other=0.0)


@triton.jit
def store(matrix, row, stride, rows, value, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The reverse of `load`."""
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(matrix + at, value.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def scores(products, mask, strides, l, s, L, S, scale, CAUSAL: tl.constexpr):  # noqa: E741
    """scale · products + mask, and -inf for pairs that do not exist."""
    inside = (l < L) & (s < S)
    if CAUSAL:
        inside = inside & (s <= l)
    found = products * scale
    if mask is not None:
        at = l.to(tl.int64) * strides[3] + s.to(tl.int64) * strides[4]
        found += tl.load(mask + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, found, float("-inf"))


@triton.jit
def levels(lse, l, L):  # noqa: E741
    """What is subtracted before exp: lse, but inf for rows without keys, so that they give 0."""
    level = tl.load(lse + l, mask=l < L, other=float("inf"))
    return tl.where(level == float("-inf"), float("inf"), level)


@triton.jit
def inverse(sums):
    """1 / sums, and 0 for rows without keys."""
    return tl.where(sums == 0, 0.0, 1.0 / tl.where(sums == 0, 1.0, sums))


@triton.jit
def mixed(x):
    """Thirty-two well mixed bits of 64: the hash of `fastmaml.engine.base.seeds`."""
    x = (x ^ (x >> 32)).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def seeded(key, task, DROPOUT: tl.constexpr):
    """The task's key, hashed."""
    if DROPOUT:
        return mixed(tl.load(key + task).to(tl.uint64)).to(tl.uint64)
    else:
        return 0


@triton.jit
def drop(x, seed, head, l, s, L, S, threshold, factor, DROPOUT: tl.constexpr):  # noqa: E741
    """x times the dropout mask; ``head`` counts within the task."""
    if DROPOUT:
        row = ((head * L + l) * S).to(tl.uint64) * 0x9E3779B1 + seed
        keep = mixed(row + s.to(tl.uint64) * 0x9E3779B1) >= threshold.to(tl.uint32)
        x = tl.where(keep, x * factor, 0.0)
    return x
