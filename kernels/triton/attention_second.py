"""The second derivatives of attention: where the output and its gradients move along (hq, hk, hv).

With P, M, delta and dS as in `attention_backward`, and dP = M ∘ (g vᵀ), the scores move by
tS = scale (hq kᵀ + q hkᵀ), so P by tP = P ∘ (tS - r), r = rowsum(P ∘ tS), and the output by
gg = (M ∘ tP) v + (M ∘ P) hv. Then delta moves by tdelta = rowsum(g ∘ gg), and dS by
tdS = tP ∘ (dP - delta) + P ∘ (M ∘ (g hvᵀ) - tdelta).
"""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

import torch

import triton
import triton.language as tl

from .attention_parts import begin, drop, inverse, levels, load, place, scores, seeded, store
from .attention_work import Attention, Block, strides
from .launch import Launch

INTEGERS = ["B", "H", "L", "S", "tiles", "threshold"]


@triton.jit(do_not_specialize=INTEGERS)
def tangents_kernel(
    hq, hk, hv, g, q, k, v, mask, key, o, lse, gg, norm, delta, mean, moved,
    hqs, hks, hvs, gs, qs, ks, vs, ms, os, ggs,
    B, H, L, S, tiles, scale, threshold, factor,
    D: tl.constexpr, E: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """gg of one tile of rows, and their norm (as `queries_kernel`), delta, mean (r) and moved.

    (M ∘ tP) v = (M ∘ P ∘ tS) v - r ∘ o, so one walk over the keys is enough. ``moved`` is tdelta.
    """
    tile, head, t, b, h = place(B, H, tiles)
    l = tile * BM + tl.arange(0, BM)  # noqa: E741
    k, hk = begin(k, ks, t, b, h), begin(hk, hks, t, b, h)
    v, hv = begin(v, vs, t, b, h), begin(hv, hvs, t, b, h)
    if mask is not None:
        mask = begin(mask, ms, t, b, h)
    seed = seeded(key, t, DROPOUT)
    q = load(begin(q, qs, t, b, h), l, qs[3], L, D, BD)
    hq = load(begin(hq, hqs, t, b, h), l, hqs[3], L, D, BD)
    level = levels(lse + head * L, l, L)
    sums, row_mean = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, BE), tl.float32)
    last = tl.minimum(S, (tile + 1) * BM) if CAUSAL else S
    for first in range(0, last, BN):
        s = first + tl.arange(0, BN)
        x, hx = load(k, s, ks[3], S, D, BD), load(hk, s, hks[3], S, D, BD)
        p = tl.dot(q, tl.trans(x), input_precision=PRECISION)
        p = scores(p, mask, ms, l[:, None], s[None, :], L, S, scale, CAUSAL)
        p = tl.exp(p - level[:, None])
        ts = tl.dot(hq, tl.trans(x), input_precision=PRECISION)
        ts = p * (tl.dot(q, tl.trans(hx), ts, input_precision=PRECISION) * scale)
        sums += tl.sum(p, 1)
        row_mean += tl.sum(ts, 1)
        ts = drop(ts, seed, b * H + h, l[:, None], s[None, :], L, S, threshold, factor, DROPOUT)
        p = drop(p, seed, b * H + h, l[:, None], s[None, :], L, S, threshold, factor, DROPOUT)
        y, hy = load(v, s, vs[3], S, E, BE), load(hv, s, hvs[3], S, E, BE)
        total = tl.dot(ts.to(y.dtype), y, total, input_precision=PRECISION)
        total = tl.dot(p.to(y.dtype), hy, total, input_precision=PRECISION)
    row_norm = inverse(sums)
    row_mean *= row_norm
    o = load(begin(o, os, t, b, h), l, os[3], L, E, BE).to(tl.float32)
    total = total * row_norm[:, None] - row_mean[:, None] * o
    if gg is not None:
        store(begin(gg, ggs, t, b, h), l, ggs[3], L, total, E, BE)
    g = load(begin(g, gs, t, b, h), l, gs[3], L, E, BE).to(tl.float32)
    at = head * L + l
    tl.store(norm + at, row_norm, mask=l < L)
    tl.store(delta + at, tl.sum(g * o, 1), mask=l < L)
    tl.store(mean + at, row_mean, mask=l < L)
    tl.store(moved + at, tl.sum(g * total, 1), mask=l < L)


@triton.jit(do_not_specialize=INTEGERS)
def second_queries_kernel(
    hq, hk, hv, g, q, k, v, mask, key, lse, norm, delta, mean, moved, gq,
    hqs, hks, hvs, gs, qs, ks, vs, ms, gqs,
    B, H, L, S, tiles, scale, threshold, factor,
    D: tl.constexpr, E: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """gq = scale (tdS k + dS hk) of one tile of rows."""
    tile, head, t, b, h = place(B, H, tiles)
    l = tile * BM + tl.arange(0, BM)  # noqa: E741
    k, hk = begin(k, ks, t, b, h), begin(hk, hks, t, b, h)
    v, hv = begin(v, vs, t, b, h), begin(hv, hvs, t, b, h)
    if mask is not None:
        mask = begin(mask, ms, t, b, h)
    seed = seeded(key, t, DROPOUT)
    q = load(begin(q, qs, t, b, h), l, qs[3], L, D, BD)
    hq = load(begin(hq, hqs, t, b, h), l, hqs[3], L, D, BD)
    g = load(begin(g, gs, t, b, h), l, gs[3], L, E, BE)
    level, at, there = levels(lse + head * L, l, L), head * L + l, l < L
    row_norm = tl.load(norm + at, mask=there, other=0.0)
    row_delta = tl.load(delta + at, mask=there, other=0.0)
    row_mean = tl.load(mean + at, mask=there, other=0.0)
    row_moved = tl.load(moved + at, mask=there, other=0.0)
    total = tl.zeros((BM, BD), tl.float32)
    last = tl.minimum(S, (tile + 1) * BM) if CAUSAL else S
    for first in range(0, last, BN):
        s = first + tl.arange(0, BN)
        x, hx = load(k, s, ks[3], S, D, BD), load(hk, s, hks[3], S, D, BD)
        y, hy = load(v, s, vs[3], S, E, BE), load(hv, s, hvs[3], S, E, BE)
        p = tl.dot(q, tl.trans(x), input_precision=PRECISION)
        p = scores(p, mask, ms, l[:, None], s[None, :], L, S, scale, CAUSAL)
        p = tl.exp(p - level[:, None]) * row_norm[:, None]
        ts = tl.dot(hq, tl.trans(x), input_precision=PRECISION)
        ts = tl.dot(q, tl.trans(hx), ts, input_precision=PRECISION) * scale
        dp = tl.dot(g, tl.trans(y), input_precision=PRECISION)
        dp = drop(dp, seed, b * H + h, l[:, None], s[None, :], L, S, threshold, factor, DROPOUT)
        dp -= row_delta[:, None]
        tdp = tl.dot(g, tl.trans(hy), input_precision=PRECISION)
        tdp = drop(tdp, seed, b * H + h, l[:, None], s[None, :], L, S, threshold, factor, DROPOUT)
        ds, tds = p * dp, p * ((ts - row_mean[:, None]) * dp + tdp - row_moved[:, None])
        total = tl.dot(tds.to(x.dtype), x, total, input_precision=PRECISION)
        total = tl.dot(ds.to(x.dtype), hx, total, input_precision=PRECISION)
    store(begin(gq, gqs, t, b, h), l, gqs[3], L, total * scale, D, BD)


@triton.jit(do_not_specialize=INTEGERS)
def second_keys_kernel(
    hq, hk, hv, g, q, k, v, mask, key, lse, norm, delta, mean, moved, gk, gv,
    hqs, hks, hvs, gs, qs, ks, vs, ms, gks, gvs,
    B, H, L, S, tiles, scale, threshold, factor,
    D: tl.constexpr, E: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """gk = scale (tdSᵀ q + dSᵀ hq) and gv = (M ∘ tP)ᵀ g of one tile of keys."""
    tile, head, t, b, h = place(B, H, tiles)
    s = tile * BN + tl.arange(0, BN)
    q, hq, g = begin(q, qs, t, b, h), begin(hq, hqs, t, b, h), begin(g, gs, t, b, h)
    if mask is not None:
        mask = begin(mask, ms, t, b, h)
    seed = seeded(key, t, DROPOUT)
    k = load(begin(k, ks, t, b, h), s, ks[3], S, D, BD)
    hk = load(begin(hk, hks, t, b, h), s, hks[3], S, D, BD)
    v = load(begin(v, vs, t, b, h), s, vs[3], S, E, BE)
    hv = load(begin(hv, hvs, t, b, h), s, hvs[3], S, E, BE)
    total_k, total_v = tl.zeros((BN, BD), tl.float32), tl.zeros((BN, BE), tl.float32)
    start = tile * BN // BM * BM if CAUSAL else 0
    for first in range(start, L, BM):
        l = first + tl.arange(0, BM)  # noqa: E741
        x, hx = load(q, l, qs[3], L, D, BD), load(hq, l, hqs[3], L, D, BD)
        y = load(g, l, gs[3], L, E, BE)
        at, there = head * L + l, l < L
        p = tl.dot(k, tl.trans(x), input_precision=PRECISION)
        p = scores(p, mask, ms, l[None, :], s[:, None], L, S, scale, CAUSAL)
        p = tl.exp(p - levels(lse + head * L, l, L)[None, :])
        p *= tl.load(norm + at, mask=there, other=0.0)[None, :]
        ts = tl.dot(k, tl.trans(hx), input_precision=PRECISION)
        ts = tl.dot(hk, tl.trans(x), ts, input_precision=PRECISION) * scale
        tp = p * (ts - tl.load(mean + at, mask=there, other=0.0)[None, :])
        if gv is not None:
            kept = drop(
                tp, seed, b * H + h, l[None, :], s[:, None], L, S, threshold, factor, DROPOUT
            )
            total_v = tl.dot(kept.to(y.dtype), y, total_v, input_precision=PRECISION)
        if gk is not None:
            dp = tl.dot(v, tl.trans(y), input_precision=PRECISION)
            dp = drop(dp, seed, b * H + h, l[None, :], s[:, None], L, S, threshold, factor, DROPOUT)
            dp -= tl.load(delta + at, mask=there, other=0.0)[None, :]
            total_k = tl.dot((p * dp).to(x.dtype), hx, total_k, input_precision=PRECISION)
            tdp = tl.dot(hv, tl.trans(y), input_precision=PRECISION)
            tdp = drop(
                tdp, seed, b * H + h, l[None, :], s[:, None], L, S, threshold, factor, DROPOUT
            )
            tdp -= tl.load(moved + at, mask=there, other=0.0)[None, :]
            tds = tp * dp + p * tdp
            total_k = tl.dot(tds.to(x.dtype), x, total_k, input_precision=PRECISION)
    if gk is not None:
        store(begin(gk, gks, t, b, h), s, gks[3], S, total_k * scale, D, BD)
    if gv is not None:
        store(begin(gv, gvs, t, b, h), s, gvs[3], S, total_v, E, BE)


def second(
    work: Attention,
    tile: Block,
    h: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    g: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    out: tuple[torch.Tensor | None, ...],
) -> list[Launch]:
    """Launches that write ``out``: gg, gq, gk and gv, each where it is not None, in this order."""
    _, gq, gk, gv = out
    names = "hq", "hk", "hv", "g", "o", "gg", "gq", "gk", "gv"
    named = dict(zip(names, (*h, g, o, *out), strict=True))
    rows = {name: torch.empty_like(lse) for name in ("norm", "delta", "mean", "moved")}
    given = {**named, **{f"{name}s": strides(x) for name, x in named.items()}, "lse": lse, **rows}
    launches = [work.launch(tangents_kernel, True, tile, **given)]
    if gq is not None:
        launches.append(work.launch(second_queries_kernel, True, tile, **given))
    if gk is not None or gv is not None:
        launches.append(work.launch(second_keys_kernel, False, tile, **given))
    return launches
