"""Attention in float64, by PyTorch's batched products; here the probabilities do lie in memory."""

# ruff: noqa: N803 (constants of a kernel are capitals)

from __future__ import annotations

from typing import NamedTuple

import torch

import triton
import triton.language as tl

from .attention_parts import drop, place, seeded
from .attention_work import Attention, Block, factor

BLOCK = Block(16, 64, 4, 1)


@triton.jit(do_not_specialize=["B", "H", "L", "S", "tiles", "threshold"])
def dropout_kernel(key, out, B, H, L, S, tiles, threshold, BM: tl.constexpr, BN: tl.constexpr):
    """1 for what dropout keeps of BM rows, else 0, in out [T, B, H, L, S]."""
    tile, head, t, b, h = place(B, H, tiles)
    l = tile * BM + tl.arange(0, BM)  # noqa: E741
    seed = seeded(key, t, True)
    for first in range(0, S, BN):
        s = first + tl.arange(0, BN)
        one = tl.full((BM, BN), 1.0, tl.float32)
        one = drop(one, seed, b * H + h, l[:, None], s[None, :], L, S, threshold, 1.0, True)
        at = ((head * L + l) * S)[:, None] + s[None, :]
        tl.store(out + at, one.to(out.dtype.element_ty), (l < L)[:, None] & (s < S)[None, :])


class Weights(NamedTuple):
    """The probabilities [T, B, H, L, S], their lse, and the dropout mask, None without."""

    p: torch.Tensor
    lse: torch.Tensor
    kept: torch.Tensor | None

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """x times the dropout mask."""
        return x if self.kept is None else x * self.kept


def weights(work: Attention) -> Weights:
    """The probabilities; rows without keys have none."""
    scores = work.scale * (work.q @ work.k.mT)
    if work.mask is not None:
        scores = scores + work.mask
    if work.causal:
        above = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(above, float("-inf"))
    lse = torch.logsumexp(scores, -1)
    p = torch.softmax(scores, -1).masked_fill((lse == float("-inf")).unsqueeze(-1), 0.0)
    kept = None
    if work.dropout > 0:
        kept = torch.empty_like(p, memory_format=torch.contiguous_format)
        work.launch(dropout_kernel, True, BLOCK, out=kept).run()
        kept *= factor(work.dropout, kept.dtype)
    return Weights(p, lse, kept)


def forward(work: Attention) -> tuple[torch.Tensor, torch.Tensor]:
    """o and lse."""
    found = weights(work)
    return found.dropped(found.p) @ work.v, found.lse


def backward(
    work: Attention, g: torch.Tensor, o: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gq, gk and gv."""
    found = weights(work)
    delta = (g * o).sum(-1, keepdim=True)
    ds = work.scale * found.p * (found.dropped(g @ work.v.mT) - delta)
    return ds @ work.k, ds.mT @ work.q, found.dropped(found.p).mT @ g


def second(
    work: Attention,
    h: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    g: torch.Tensor,
    o: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """gg, gq, gk and gv."""
    (hq, hk, hv), found = h, weights(work)
    ts = work.scale * (hq @ work.k.mT + work.q @ hk.mT)
    tp = found.p * (ts - (found.p * ts).sum(-1, keepdim=True))
    gg = found.dropped(tp) @ work.v + found.dropped(found.p) @ hv
    dp = found.dropped(g @ work.v.mT) - (g * o).sum(-1, keepdim=True)
    tdp = found.dropped(g @ hv.mT) - (g * gg).sum(-1, keepdim=True)
    ds = work.scale * found.p * dp
    tds = work.scale * (tp * dp + found.p * tdp)
    gk = tds.mT @ work.q + ds.mT @ hq
    return gg, tds @ work.k + ds @ hk, gk, found.dropped(tp).mT @ g
