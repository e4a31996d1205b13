"""What stands in for attention and embeddings while a model runs inside the meta-step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmaml import ops
from fastmaml.engine.base import functorch
from fastmaml.engine.routing import second_order

if TYPE_CHECKING:
    from fastmaml.engine.routing.mode import Routing


def attention(
    mode: Routing,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`: PyTorch's fused kernels have no second derivative."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    batch = _heads(query, key, value, attn_mask)
    backend = None if batch is None else mode.native("task_attention", query, key, value)
    if batch is not None and backend is not None:
        query, key, value = (
            x if x.shape[:2] == batch else x.expand(*batch, -1, -1) for x in (query, key, value)
        )
        draws = mode.next_key().unsqueeze(0) if dropout_p > 0 else None
        mask = None if attn_mask is None else _added(attn_mask, query.dtype).unsqueeze(0)
        return ops.task_attention(
            query[None],
            key[None],
            value[None],
            mask,
            causal=is_causal,
            scale=scale,
            dropout=dropout_p,
            key=draws,
            backend=backend,
        ).squeeze(0)
    if dropout_p == 0:
        with sdpa_kernel(SDPBackend.MATH):
            return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -torch.inf)
    if attn_mask is not None:
        scores = scores + _added(attn_mask, scores.dtype)
    probabilities = scores.softmax(-1)
    mask = mode.dropout_mask(list(probabilities.shape), dropout_p, probabilities)
    return (probabilities * mask) @ value


def _heads(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[int, int] | None:
    """The examples and heads of a call that `ops.task_attention` can take; None of any other."""
    if not query.ndim == key.ndim == value.ndim == 4 or query.shape[3] == 0:
        return None
    if query.shape[3] != key.shape[3] or key.shape[2] != value.shape[2]:
        return None  # PyTorch says what is wrong with that
    try:
        examples, heads = torch.broadcast_shapes(*(x.shape[:2] for x in (query, key, value)))
    except RuntimeError:
        return None
    if mask is not None:
        full = examples, heads, query.shape[2], key.shape[2]
        fits = mask.ndim <= 4 and all(
            m in (1, n) for m, n in zip(reversed(mask.shape), reversed(full), strict=False)
        )
        if not fits or functorch.needs_gradient(mask):
            return None  # to the op a mask is a constant
    return examples, heads


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


_RENORMALISES = (
    "an embedding with max_norm={0} writes to its own weight in forward(): it would change the "
    "meta-parameters whenever a task is adapted. Leave max_norm out (embedding.max_norm = None), "
    "and call embedding.weight.renorm_(2, 0, {0}) under torch.no_grad() after every optimizer "
    "step, or scale what was looked up: "
    "x * ({0} / x.norm(dim=-1, keepdim=True).clamp(min={0})).detach()."
)


def embedding_bag(
    routing: Routing,
    func: Any,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`F.embedding_bag` with second derivatives, unless it would write to its weight."""
    if max_norm is not None:
        raise ValueError(_RENORMALISES.format(max_norm))
    return second_order.embedding_bag(input, weight, offsets, max_norm, *args, **kwargs)


def embedding(
    mode: Routing,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`F.embedding`, of a task's own rows or of all.

    PyTorch's rule for vmap forgets `padding_idx`, whose row gets no gradient, and its sparse
    gradients have no derivative.
    """
    if max_norm is not None:
        raise ValueError(_RENORMALISES.format(max_norm))
    if scale_grad_by_freq:
        return func(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    rows = next((rows for table, rows in mode.rows if table is weight), None)
    ids = input if rows is None else torch.searchsorted(rows, input)
    backend = mode.native("task_embedding", weight)
    if backend is None or not functorch.needs_gradient(weight):
        found = func(ids, weight)
    else:
        flat = ids.reshape(1, -1).long()
        found = ops.task_embedding(weight[None], flat, backend=backend)
        found = found.view(*ids.shape, weight.shape[1])
    if padding_idx is None:
        return found
    if padding_idx < 0:
        padding_idx += weight.shape[0]
    return torch.where((input == padding_idx).unsqueeze(-1), found.detach(), found)
