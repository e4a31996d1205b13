"""Attention forwards: a program walks one tile of queries over the keys, by an online softmax."""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

import torch

import triton
import triton.language as tl

from .attention_parts import begin, drop, load, place, scores, seeded, store
from .attention_work import Attention, Block
from .launch import Launch


@triton.jit(do_not_specialize=["B", "H", "L", "S", "tiles", "threshold"])
def forward_kernel(
    q, k, v, mask, key, o, lse,
    qs, ks, vs, ms, os,
    B, H, L, S, tiles, scale, threshold, factor,
    D: tl.constexpr, E: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """o and lse of one tile of rows."""
    tile, head, t, b, h = place(B, H, tiles)
    l = tile * BM + tl.arange(0, BM)  # noqa: E741
    k, v = begin(k, ks, t, b, h), begin(v, vs, t, b, h)
    if mask is not None:
        mask = begin(mask, ms, t, b, h)
    seed = seeded(key, t, DROPOUT)
    q = load(begin(q, qs, t, b, h), l, qs[3], L, D, BD)
    best = tl.full((BM,), float("-inf"), tl.float32)
    sums = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, BE), tl.float32)
    last = tl.minimum(S, (tile + 1) * BM) if CAUSAL else S
    for first in range(0, last, BN):
        s = first + tl.arange(0, BN)
        x = load(k, s, ks[3], S, D, BD)
        x = tl.dot(q, tl.trans(x), input_precision=PRECISION)
        x = scores(x, mask, ms, l[:, None], s[None, :], L, S, scale, CAUSAL)
        better = tl.maximum(best, tl.max(x, 1))
        level = tl.where(better == float("-inf"), 0.0, better)
        p, decay = tl.exp(x - level[:, None]), tl.exp(best - level)
        sums = sums * decay + tl.sum(p, 1)
        p = drop(p, seed, b * H + h, l[:, None], s[None, :], L, S, threshold, factor, DROPOUT)
        y = load(v, s, vs[3], S, E, BE)
        total = tl.dot(p.to(y.dtype), y, total * decay[:, None], input_precision=PRECISION)
        best = better
    total = total / tl.where(sums == 0, 1.0, sums)[:, None]
    store(begin(o, os, t, b, h), l, os[3], L, total, E, BE)
    best += tl.log(tl.where(sums == 0, 1.0, sums))
    tl.store(lse + head * L + l, best, mask=l < L)


def forward(work: Attention, tile: Block, o: torch.Tensor, lse: torch.Tensor) -> Launch:
    """Writes o [T, B, H, L, E] and lse [T, B, H, L] (dense)."""
    return work.launch(forward_kernel, True, tile, o=o, lse=lse, os=o.stride())
