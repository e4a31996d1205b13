"""The raw ops of attention, embeddings and dropout masks in plain PyTorch formulas."""

from __future__ import annotations

from typing import Any

import torch
from raw_registry import only, raw
from torch import Tensor

from fastmaml.ops.dropout_mask import reference_dropout_mask


def hidden(x: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, 0, x)


def scores_of(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    s = scale * torch.einsum("tbhld,tbhsd->tbhls", q, k)
    s = s if mask is None else s + mask
    if causal:
        row, key = (torch.arange(n, device=s.device) for n in s.shape[3:])
        s = torch.where(key <= row[:, None], s, -torch.inf)
    return s


def parts(q, k, v, mask, key, causal, scale, dropout) -> tuple[Tensor, Any, Tensor]:
    """The probabilities, the dropout mask and the log-sum-exp of the scores."""
    s = scores_of(q, k, mask, causal, scale)
    top = s.amax(4, keepdim=True) if s.shape[4] else s.new_full((*s.shape[:4], 1), -torch.inf)
    blind = top == -torch.inf
    e = hidden(torch.exp(s - hidden(top, blind)), blind)
    total = e.sum(4, keepdim=True)
    drop = 1.0 if key is None else reference_dropout_mask(key, s.shape[1:], dropout, s.dtype)
    p = e / torch.where(blind, 1, total)
    return p, drop, (top + torch.log(torch.where(blind, 1, total)))[..., 0]


def heads_inner(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


@raw
def task_attention(q, k, v, mask, key, causal, scale, dropout) -> tuple[Tensor, Tensor]:
    p, drop, lse = parts(q, k, v, mask, key, causal, scale, dropout)
    return heads_inner((p * drop) @ v), lse


@raw
def task_attention_bwd(g, q, k, v, mask, key, o, lse, causal, scale, dropout):
    p, drop, _ = parts(q, k, v, mask, key, causal, scale, dropout)
    ds = scale * p * (drop * (g @ v.mT) - (g * o).sum(4, keepdim=True))
    return tuple(heads_inner(x) for x in (ds @ k, ds.mT @ q, (p * drop).mT @ g))


@raw
def task_attention_bwd2(hq, hk, hv, g, q, k, v, mask, key, o, lse, causal, scale, dropout, need):
    hq, hk, hv = (torch.zeros_like(x) if h is None else h for h, x in ((hq, q), (hk, k), (hv, v)))
    p, drop, _ = parts(q, k, v, mask, key, causal, scale, dropout)
    t = scale * (hq @ k.mT + q @ hk.mT)
    tp = p * (t - (p * t).sum(4, keepdim=True))
    gg = (tp * drop) @ v + (p * drop) @ hv
    d = drop * (g @ v.mT) - (g * o).sum(4, keepdim=True)
    td = drop * (g @ hv.mT) - (g * gg).sum(4, keepdim=True)
    ds, tds = scale * p * d, scale * (tp * d + p * td)
    return only(
        need,
        lambda: heads_inner(gg),
        lambda: heads_inner(tds @ k + ds @ hk),
        lambda: heads_inner(tds.mT @ q + ds.mT @ hq),
        lambda: heads_inner((tp * drop).mT @ g),
    )


@raw
def task_embedding(w: Tensor, ids: Tensor) -> Tensor:
    tasks = torch.arange(len(w), device=w.device)
    return w[tasks[:, None], ids]


@raw
def task_embedding_grad(g: Tensor, ids: Tensor, rows: int) -> Tensor:
    gw = g.new_zeros(len(g), rows, g.shape[2])
    tasks = torch.arange(len(g), device=g.device)
    return gw.index_put((tasks[:, None], ids), g, accumulate=True)


@raw
def dropout_mask(key: Tensor, size: int, p: float, dtype: torch.dtype) -> Tensor:
    return reference_dropout_mask(key, (size,), p, dtype)
