"""The weight gradient of a convolution: gw[tap, c, o] = sum over pixels of x[moved, c] · g[o]."""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

from collections.abc import Sequence

import torch

import triton
import triton.language as tl

from .conv_gather import flat
from .fold import fold
from .launch import Launch, Product
from .tiles import Tile, splits


@triton.jit(do_not_specialize=["tasks", "N", "H", "W", "HO", "WO", "rows", "chunk"])
def wgrad_kernel(
    x, g, gw, gb,
    tasks, N, H, W, C, HO, WO, O,  # noqa: E741
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    rows, chunk, splits,
    xt, xn, xh, xw, xc, gt, gn, gh, gv, go,
    FLAT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x is [T, N, H, W, C], g [T, N, HO, WO, O], gw [splits, T, kh, kw, C, O], gb [splits, T, O].

    FLAT tiles taps and channels as one dimension, for few channels; else a tile is of one tap.
    """
    columns = tl.cdiv(O, BN)
    program = tl.program_id(0)
    tile, outer = program % (rows * columns), program // (rows * columns)
    split, task = outer % splits, outer // splits
    # Tiles of the same taps and channels are neighbours: they gather the same part of x.
    block, o = tile // columns, tile % columns * BN + tl.arange(0, BN)
    if FLAT:
        m = block * BM + tl.arange(0, BM)
        c, tap = m % C, m // C
        real = tap < kernel_h * kernel_w
    else:
        blocks = tl.cdiv(C, BM)
        c, tap = block % blocks * BM + tl.arange(0, BM), block // blocks
        real = c < C
    down, right = tap // kernel_w * dilation_h, tap % kernel_w * dilation_w

    pixels = N * HO * WO
    low = split * chunk
    high = tl.minimum(low + chunk, pixels)
    # 64-bit from here on: a task's slice may lie beyond 2^31 elements.
    x_task = x + task.to(tl.int64) * xt
    moved = down.to(tl.int64) * xh + right.to(tl.int64) * xw + c.to(tl.int64) * xc
    g_task = g + task.to(tl.int64) * gt + o.to(tl.int64)[None, :] * go
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(low, high, BK):
        k = start + tl.arange(0, BK)
        example, pixel = k // (HO * WO), k % (HO * WO)
        row, column = pixel // WO, pixel % WO
        h, v = row * stride_h - pad_h, column * stride_w - pad_w
        if FLAT:
            at_h = down[:, None] + h[None, :]
            at_w = right[:, None] + v[None, :]
            inside = (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W) & (k < high)[None, :]
        else:
            at_h, at_w = h + down, v + right
            inside = (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W) & (k < high)
            inside = inside[None, :]
        at_x = example.to(tl.int64) * xn + h.to(tl.int64) * xh + v.to(tl.int64) * xw
        inside = inside & real[:, None]
        a = tl.load(x_task + moved[:, None] + at_x[None, :], mask=inside, other=0.0)
        at_g = example.to(tl.int64) * gn + row.to(tl.int64) * gh + column.to(tl.int64) * gv
        within = (k < high)[:, None] & (o < O)[None, :]
        b = tl.load(g_task + at_g[:, None], mask=within, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)

    batch = split.to(tl.int64) * tasks + task
    line = (batch * (kernel_h * kernel_w) + tap) * C + c
    inside = real[:, None] & (o < O)[None, :]
    at_gw = gw + line[:, None] * O + o[None, :]
    tl.store(at_gw, total.to(gw.dtype.element_ty), mask=inside)

    # Again over g, which the caches still hold, so that the first loop feeds tensor cores only.
    if gb is not None and block == 0:
        sums = tl.zeros((BN,), dtype=tl.float32)
        for start in range(low, high, BK):
            k = start + tl.arange(0, BK)
            example, pixel = k // (HO * WO), k % (HO * WO)
            row, column = pixel // WO, pixel % WO
            at_g = example.to(tl.int64) * gn + row.to(tl.int64) * gh + column.to(tl.int64) * gv
            within = (k < high)[:, None] & (o < O)[None, :]
            b = tl.load(g_task + at_g[:, None], mask=within, other=0.0)
            sums += tl.sum(b.to(tl.float32), axis=0)
        tl.store(gb + batch * O + o, sums.to(gb.dtype.element_ty), mask=o < O)


def wgrad(
    product: Product,
    tile: Tile,
    x: torch.Tensor,
    g: torch.Tensor,
    gw: torch.Tensor,
    gb: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    parts: int | None = None,
) -> list[Launch]:
    """x [T, N, H, W, C] and g [T, N, HO, WO, O] read; gw [T, kh, kw, C, O], gb [T, O] written."""
    parts = splits(product, tile) if parts is None else parts
    out, sums = gw, gb
    if parts > 1:
        out = gw.new_empty((parts, *gw.shape), dtype=torch.float32)
        sums = gb if gb is None else gw.new_empty((parts, *gb.shape), dtype=torch.float32)
    channels, outputs = gw.shape[3:]
    taps = gw.shape[1] * gw.shape[2]
    few = flat(channels, tile.m)
    blocks = triton.cdiv(taps * channels, tile.m) if few else taps * triton.cdiv(channels, tile.m)
    arguments = {
        "x": x,
        "g": g,
        "gw": out,
        "gb": sums,
        "tasks": product.tasks,
        **dict(zip("NHWC", x.shape[1:], strict=True)),
        **dict(zip(("HO", "WO", "O"), g.shape[2:], strict=True)),
        **dict(zip(("kernel_h", "kernel_w"), gw.shape[1:3], strict=True)),
        **dict(zip(("stride_h", "stride_w"), stride, strict=True)),
        **dict(zip(("pad_h", "pad_w"), padding, strict=True)),
        **dict(zip(("dilation_h", "dilation_w"), dilation, strict=True)),
        "rows": blocks,
        "chunk": triton.cdiv(triton.cdiv(product.k, parts), tile.k) * tile.k,
        "splits": parts,
        **dict(zip(("xt", "xn", "xh", "xw", "xc"), x.stride(), strict=True)),
        **dict(zip(("gt", "gn", "gh", "gv", "go"), g.stride(), strict=True)),
        "FLAT": few,
        "PRECISION": product.precision,
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
    }
    programs = product.tasks * parts * blocks * triton.cdiv(outputs, tile.n)
    main = Launch(wgrad_kernel, programs, arguments, tile.warps, tile.stages)
    return [main] if parts == 1 else [main, fold(out, gw, sums, gb)]
