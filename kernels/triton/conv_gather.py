"""Convolution and its input gradient as one implicit matrix product: rows are pixels gathered.

Both write out[pixel, n] = sum over taps and channels k of read[pixel moved by the tap, k] · w[tap,
k, n]. The input gradient of a strided convolution falls apart into stride² *phases* (output rows
and columns alike modulo the stride), each a dense convolution with every stride-th tap, so nothing
is multiplied by zeros.
"""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

from collections.abc import Sequence

import torch

import triton
import triton.language as tl

from .launch import Launch, Product
from .tiles import Tile


# Whether images' sizes are multiples of 16 changes no code: one compilation serves all.
@triton.jit(do_not_specialize=["N", "H", "W", "HO", "WO", "tiles"])
def gather_kernel(
    x, w, bias, y,
    N, H, W, C, HO, WO, O,  # noqa: E741
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, tiles,
    xt, xn, xh, xw, xc, wt, wh, ww, wc, wo, biast, biaso,
    BACKWARD: tl.constexpr, PHASED: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x [T, N, H, W, C] is read, y [T, N, HO, WO, O] (dense) written, w is [T, kh, kw, C, O].

    BACKWARD reads the output's gradient and writes the input's, in phases if PHASED. FLAT takes
    taps and channels as one dimension, for few channels; else a step of the loop lies in one tap.
    """
    program = tl.program_id(0)
    tile, outer = program % tiles, program // tiles
    if BACKWARD:
        phases = stride_h * stride_w
        phase, task = outer % phases, outer // phases
        phase_h, phase_w = phase // stride_w, phase % stride_w
        every_h, every_w = stride_h, stride_w  # between output pixels, and between taps
        tap_h, tap_w = (phase_h + pad_h) % stride_h, (phase_w + pad_w) % stride_w
        start_h, start_w = (phase_h + pad_h) // stride_h, (phase_w + pad_w) // stride_w
        move_h, move_w, jump_h, jump_w = 1, 1, -dilation_h, -dilation_w
    else:
        task = outer
        phase_h, phase_w, every_h, every_w, tap_h, tap_w = 0, 0, 1, 1, 0, 0
        start_h, start_w = -pad_h, -pad_w
        move_h, move_w, jump_h, jump_w = stride_h, stride_w, dilation_h, dilation_w
    height = (HO - phase_h + every_h - 1) // every_h
    width = (WO - phase_w + every_w - 1) // every_w
    taps_w = (kernel_w - tap_w + every_w - 1) // every_w
    taps = (kernel_h - tap_h + every_h - 1) // every_h * taps_w

    columns = tl.cdiv(O, BN)
    m = tile // columns * BM + tl.arange(0, BM)
    o = tile % columns * BN + tl.arange(0, BN)
    pixel = m % tl.maximum(height * width, 1)
    example = m // tl.maximum(height * width, 1)
    row, column = pixel // tl.maximum(width, 1), pixel % tl.maximum(width, 1)
    h = row * move_h + start_h
    v = column * move_w + start_w
    live = m < N * height * width
    # 64-bit from here on: a task's slice may lie beyond 2^31 elements.
    x_rows = example.to(tl.int64) * xn + h.to(tl.int64) * xh + v.to(tl.int64) * xw
    x_task = x + task.to(tl.int64) * xt
    w_task = w + task.to(tl.int64) * wt + o.to(tl.int64)[None, :] * wo
    total = tl.zeros((BM, BN), dtype=tl.float32)
    if FLAT:
        for first in range(0, taps * C, BK):
            k = first + tl.arange(0, BK)
            c, tap = k % C, k // C
            i, j = tap // taps_w, tap % taps_w
            at_h = h[:, None] + (i * jump_h)[None, :]
            at_w = v[:, None] + (j * jump_w)[None, :]
            inside = (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
            inside = inside & live[:, None] & (k < taps * C)[None, :]
            moved = (i * jump_h).to(tl.int64) * xh + (j * jump_w).to(tl.int64) * xw + c * xc
            a = tl.load(x_task + x_rows[:, None] + moved[None, :], mask=inside, other=0.0)
            weight = (tap_h + i * every_h).to(tl.int64) * wh + c.to(tl.int64) * wc
            weight += (tap_w + j * every_w).to(tl.int64) * ww
            within = (k < taps * C)[:, None] & (o < O)[None, :]
            b = tl.load(w_task + weight[:, None], mask=within, other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    else:
        blocks = tl.cdiv(C, BK)
        for step in range(0, taps * blocks):
            tap = step // blocks
            i, j = tap // taps_w, tap % taps_w
            c = step % blocks * BK + tl.arange(0, BK)
            at_h, at_w = h + i * jump_h, v + j * jump_w
            inside = live & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
            moved = (i * jump_h).to(tl.int64) * xh + (j * jump_w).to(tl.int64) * xw
            inside = inside[:, None] & (c < C)[None, :]
            at_x = x_task + moved + x_rows[:, None] + (c * xc)[None, :]
            a = tl.load(at_x, mask=inside, other=0.0)
            weight = (tap_h + i * every_h).to(tl.int64) * wh + c.to(tl.int64) * wc
            weight += (tap_w + j * every_w).to(tl.int64) * ww
            within = (c < C)[:, None] & (o < O)[None, :]
            b = tl.load(w_task + weight[:, None], mask=within, other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)

    if bias is not None:
        offset = task.to(tl.int64) * biast + o.to(tl.int64) * biaso
        total += tl.load(bias + offset, mask=o < O, other=0.0).to(tl.float32)[None, :]
    if PHASED:
        line = (task.to(tl.int64) * N + example) * HO + phase_h + row * every_h
        place = line * WO + phase_w + column * every_w
    else:  # the same, without holding on to the parts of m
        place = task.to(tl.int64) * N * HO * WO + m
    inside = live[:, None] & (o < O)[None, :]
    tl.store(y + (place * O)[:, None] + o[None, :], total.to(y.dtype.element_ty), mask=inside)


def gather(
    product: Product,
    tile: Tile,
    x: torch.Tensor,
    w: torch.Tensor,
    y: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    backward: bool,
) -> Launch:
    """x [T, N, H, W, C] read, w [T, kh, kw, C, O], y [T, N, HO, WO, O] dense and written.

    ``backward`` takes stride or dilation, not both, above 1.
    """
    tasks, examples, height, width, channels = x.shape
    high, wide, outputs = y.shape[2:]
    phases = stride[0] * stride[1] if backward else 1
    if backward:
        high, wide = triton.cdiv(high, stride[0]), triton.cdiv(wide, stride[1])
    tiles = triton.cdiv(examples * high * wide, tile.m) * triton.cdiv(outputs, tile.n)
    arguments = {
        "x": x,
        "w": w,
        "bias": bias,
        "y": y,
        **dict(zip("NHWC", (examples, height, width, channels), strict=True)),
        **dict(zip(("HO", "WO", "O"), y.shape[2:], strict=True)),
        **dict(zip(("kernel_h", "kernel_w"), w.shape[1:3], strict=True)),
        **dict(zip(("stride_h", "stride_w"), stride, strict=True)),
        **dict(zip(("pad_h", "pad_w"), padding, strict=True)),
        **dict(zip(("dilation_h", "dilation_w"), dilation, strict=True)),
        "tiles": tiles,
        **dict(zip(("xt", "xn", "xh", "xw", "xc"), x.stride(), strict=True)),
        **dict(zip(("wt", "wh", "ww", "wc", "wo"), w.stride(), strict=True)),
        **dict(zip(("biast", "biaso"), (0, 0) if bias is None else bias.stride(), strict=True)),
        "BACKWARD": backward,
        "PHASED": phases > 1,
        "FLAT": flat(channels, tile.k),
        "PRECISION": product.precision,
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
    }
    return Launch(gather_kernel, tasks * phases * tiles, arguments, tile.warps, tile.stages)


def flat(channels: int, block: int) -> bool:
    """Whether blocks within a tap would waste more than a quarter on channels that do not exist."""
    return triton.cdiv(channels, block) * block > 1.25 * channels
