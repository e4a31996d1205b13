"""Functions whose kernels have no second derivative in PyTorch, written in operations that have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastmaml.engine.routing.decompositions import reduced, reduction_of

LARGE = 25
"""With more points `torch.cdist` multiplies matrices, which has second derivatives."""


def cdist(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor:
    """Distances ``[..., P, R]`` of points ``[..., P, M]`` and ``[..., R, M]``."""
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1] or p < 0:
        return torch.cdist(x1, x2, p, compute_mode)  # it says what is wrong
    large = max(x1.shape[-2], x2.shape[-2]) > LARGE
    multiplies = compute_mode == "use_mm_for_euclid_dist" or (
        large and compute_mode == "use_mm_for_euclid_dist_if_necessary"
    )
    if p != 2 or not multiplies:
        return _norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)
    if forward_ad._current_level < 0:
        return torch.cdist(x1, x2, p, compute_mode)
    squares = x1.square().sum(-1).unsqueeze(-1) + x2.square().sum(-1).unsqueeze(-2)
    return _root((squares - 2 * x1 @ x2.mT).clamp(min=0))


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """Distances of the pairs of points ``[N, M]``, the first with the others, and so on."""
    if input.ndim != 2 or p < 0:
        return F.pdist(input, p)
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _norm(input[first] - input[second], p)


def _norm(x: Tensor, p: float) -> Tensor:
    return _root(x.square().sum(-1)) if p == 2 else torch.linalg.vector_norm(x, p, dim=-1)


def _root(x: Tensor) -> Tensor:
    """√x, whose derivatives at zero count as zero, as those of distances do in PyTorch."""
    nothing = x == 0
    return x.where(~nothing, 1).sqrt().where(~nothing, 0)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima of rows; whatever this does not cover goes to PyTorch."""
    flat = input.ndim == 1 and offsets is not None and offsets.ndim == 1
    pairs = input.ndim == 2 and offsets is None and not input.is_nested
    weighted = per_sample_weights is not None
    fits = mode == "sum" and input.shape == per_sample_weights.shape if weighted else True  # type: ignore[union-attr]
    usual = max_norm is None and not scale_grad_by_freq and mode in ("sum", "mean", "max")
    if (
        not (flat or pairs)
        or not fits
        or not usual
        or weight.ndim != 2
        or input.dtype.is_floating_point
    ):
        return F.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    bags, count = _bags(input, offsets, include_last_offset)
    ids = input.reshape(-1)
    # No F.embedding, whose tables may hold some rows only: these indices are not told of them.
    rows = weight.index_select(0, ids.long())
    kept = torch.ones_like(ids, dtype=torch.bool).unsqueeze(-1)
    if padding_idx is not None:
        kept = (ids != padding_idx % len(weight)).unsqueeze(-1)
    if mode == "max":
        lowest = rows.new_full((count, rows.shape[1]), -torch.inf)
        places = bags.unsqueeze(-1).expand_as(rows)
        found = lowest.scatter_reduce(0, places, rows.masked_fill(~kept, -torch.inf), "amax")
        return found.where(found != -torch.inf, 0)
    scale = kept.to(rows.dtype)
    if per_sample_weights is not None:
        scale = scale * per_sample_weights.reshape(-1, 1)
    total = rows.new_zeros(count, rows.shape[1]).index_add(0, bags, rows * scale)
    if mode == "sum":
        return total
    return total / rows.new_zeros(count, 1).index_add(0, bags, scale).clamp(min=1)


def _bags(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> tuple[Tensor, int]:
    """The bag of each index, and how many bags there are."""
    places = torch.arange(input.numel(), device=input.device)
    if offsets is None:
        return places // max(input.shape[1], 1), input.shape[0]
    starts = offsets[:-1] if include_last_offset else offsets
    return torch.searchsorted(starts, places.to(starts.dtype), right=True) - 1, len(starts)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over classes of ``max(0, margin - x[target] + x[class])ᵖ``."""
    if input.ndim not in (1, 2) or target.numel() != input.shape[:-1].numel():
        given = (p, margin, weight, size_average, reduce, reduction)
        return F.multi_margin_loss(input, target, *given)
    classes = torch.arange(input.shape[-1], device=input.device)
    labels = target.reshape(*input.shape[:-1], 1)
    excess = F.relu(margin - input.gather(-1, labels) + input) ** p
    if weight is not None:
        excess = excess * weight[labels]
    loss = excess.masked_fill(classes == labels, 0).mean(-1)
    return reduced(loss, None, reduction_of(size_average, reduce, reduction))


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over classes of ``max(0, 1 - x[label] + x[other])``, summed over a row's labels.

    Labels end at the first -1.
    """
    if input.ndim not in (1, 2) or target.shape != input.shape:
        return F.multilabel_margin_loss(input, target, size_average, reduce, reduction)
    valid = (target >= 0).long().cumprod(-1)
    labels = target.clamp(min=0)
    others = torch.zeros_like(target).scatter_add(-1, labels, valid) == 0
    excess = F.relu(1 - input.gather(-1, labels).unsqueeze(-1) + input.unsqueeze(-2))
    pairs = valid.bool().unsqueeze(-1) & others.unsqueeze(-2)
    loss = excess.masked_fill(~pairs, 0).sum(-2).mean(-1)
    return reduced(loss, None, reduction_of(size_average, reduce, reduction))


SECOND_ORDER: dict[Any, Callable[..., Tensor]] = {
    torch.cdist: cdist,
    F.pdist: pdist,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
}
"""What stands in whenever the model runs inside the meta-step."""
