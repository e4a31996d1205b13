"""The gradients of attention: a kernel over tiles of queries, then one over tiles of keys.

With P = exp(S - lse), M the dropout mask and delta = rowsum(g ∘ o), the gradient of the scores is
dS = P ∘ (M ∘ (g vᵀ) - delta). No program waits for another's sums, so nothing is added atomically.
"""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

import torch

import triton
import triton.language as tl

from .attention_parts import begin, drop, inverse, levels, load, place, scores, seeded, store
from .attention_work import Attention, Block
from .launch import Launch

INTEGERS = ["B", "H", "L", "S", "tiles", "threshold"]


@triton.jit(do_not_specialize=INTEGERS)
def queries_kernel(
    g, q, k, v, mask, key, o, lse, gq, delta, norm,
    gs, qs, ks, vs, ms, os, gqs,
    B, H, L, S, tiles, scale, threshold, factor,
    D: tl.constexpr, E: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """gq of one tile of rows; also delta, and norm, which makes their recomputed P sum to 1.

    (lse = max + log(sum) loses the sum where a mask of -1e9, say, lies on a whole row.)
    """
    tile, head, t, b, h = place(B, H, tiles)
    l = tile * BM + tl.arange(0, BM)  # noqa: E741
    k, v = begin(k, ks, t, b, h), begin(v, vs, t, b, h)
    if mask is not None:
        mask = begin(mask, ms, t, b, h)
    seed = seeded(key, t, DROPOUT)
    q = load(begin(q, qs, t, b, h), l, qs[3], L, D, BD)
    g = load(begin(g, gs, t, b, h), l, gs[3], L, E, BE)
    o = load(begin(o, os, t, b, h), l, os[3], L, E, BE)
    row_delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    level = levels(lse + head * L, l, L)
    sums = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, BD), tl.float32)
    last = tl.minimum(S, (tile + 1) * BM) if CAUSAL else S
    for first in range(0, last, BN):
        s = first + tl.arange(0, BN)
        x, y = load(k, s, ks[3], S, D, BD), load(v, s, vs[3], S, E, BE)
        p = tl.dot(q, tl.trans(x), input_precision=PRECISION)
        p = scores(p, mask, ms, l[:, None], s[None, :], L, S, scale, CAUSAL)
        p = tl.exp(p - level[:, None])
        sums += tl.sum(p, 1)
        dp = tl.dot(g, tl.trans(y), input_precision=PRECISION)
        dp = drop(dp, seed, b * H + h, l[:, None], s[None, :], L, S, threshold, factor, DROPOUT)
        ds = p * (dp - row_delta[:, None])
        total = tl.dot(ds.to(x.dtype), x, total, input_precision=PRECISION)
    row_norm = inverse(sums)
    store(begin(gq, gqs, t, b, h), l, gqs[3], L, total * (scale * row_norm)[:, None], D, BD)
    tl.store(delta + head * L + l, row_delta, mask=l < L)
    tl.store(norm + head * L + l, row_norm, mask=l < L)


@triton.jit(do_not_specialize=INTEGERS)
def keys_kernel(
    g, q, k, v, mask, key, lse, delta, norm, gk, gv,
    gs, qs, ks, vs, ms, gks, gvs,
    B, H, L, S, tiles, scale, threshold, factor,
    D: tl.constexpr, E: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """gk and gv of one tile of keys; its probabilities are held as [keys, rows]."""
    tile, head, t, b, h = place(B, H, tiles)
    s = tile * BN + tl.arange(0, BN)
    q, g = begin(q, qs, t, b, h), begin(g, gs, t, b, h)
    if mask is not None:
        mask = begin(mask, ms, t, b, h)
    seed = seeded(key, t, DROPOUT)
    k = load(begin(k, ks, t, b, h), s, ks[3], S, D, BD)
    v = load(begin(v, vs, t, b, h), s, vs[3], S, E, BE)
    total_k, total_v = tl.zeros((BN, BD), tl.float32), tl.zeros((BN, BE), tl.float32)
    start = tile * BN // BM * BM if CAUSAL else 0
    for first in range(start, L, BM):
        l = first + tl.arange(0, BM)  # noqa: E741
        x, y = load(q, l, qs[3], L, D, BD), load(g, l, gs[3], L, E, BE)
        p = tl.dot(k, tl.trans(x), input_precision=PRECISION)
        p = scores(p, mask, ms, l[None, :], s[:, None], L, S, scale, CAUSAL)
        p = tl.exp(p - levels(lse + head * L, l, L)[None, :])
        p *= tl.load(norm + head * L + l, mask=l < L, other=0.0)[None, :]
        dp = tl.dot(v, tl.trans(y), input_precision=PRECISION)
        dp = drop(dp, seed, b * H + h, l[None, :], s[:, None], L, S, threshold, factor, DROPOUT)
        ds = p * (dp - tl.load(delta + head * L + l, mask=l < L, other=0.0)[None, :])
        p = drop(p, seed, b * H + h, l[None, :], s[:, None], L, S, threshold, factor, DROPOUT)
        total_v = tl.dot(p.to(y.dtype), y, total_v, input_precision=PRECISION)
        total_k = tl.dot(ds.to(x.dtype), x, total_k, input_precision=PRECISION)
    store(begin(gk, gks, t, b, h), s, gks[3], S, total_k * scale, D, BD)
    store(begin(gv, gvs, t, b, h), s, gvs[3], S, total_v, E, BE)


def backward(
    work: Attention,
    tile: Block,
    g: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    gq: torch.Tensor,
    gk: torch.Tensor,
    gv: torch.Tensor,
) -> list[Launch]:
    """Launches that write gq, gk and gv, in this order."""
    delta, norm = torch.empty_like(lse), torch.empty_like(lse)
    given = {"g": g, "gs": g.stride(), "lse": lse, "delta": delta, "norm": norm}
    queries = {"o": o, "os": o.stride(), "gq": gq, "gqs": gq.stride()}
    keys = {"gk": gk, "gks": gk.stride(), "gv": gv, "gvs": gv.stride()}
    return [
        work.launch(queries_kernel, True, tile, **given, **queries),
        work.launch(keys_kernel, False, tile, **given, **keys),
    ]
