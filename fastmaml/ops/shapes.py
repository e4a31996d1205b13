"""The kernels' results without their numbers: what a meta-step would allocate, without running it.

A backend for fake tensors alone, named ``"shapes"``: each raw op gives tensors of the shapes,
dtypes and memory formats that the kernels' results have. The kernels' scratch memory is not among
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastmaml.ops.task_act import at_input


def _task_linear(x: Tensor, w: Tensor, b: Tensor | None, act: int) -> tuple[Tensor, Tensor]:
    size = (x.shape[0], x.shape[1], w.shape[1])
    return _new(x, *size), _new(x, *size) if at_input(act) else _new(x, 0)


def _task_linear_dgrad(g: Tensor, w: Tensor) -> Tensor:
    return _new(g, g.shape[0], g.shape[1], w.shape[2])


def _task_linear_wgrad(g: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    tasks, _, outputs = g.shape
    return _new(g, tasks, outputs, x.shape[2]), _new(g, tasks, outputs) if bias else _new(g, 0)


def _task_act(x: Tensor, act: int) -> Tensor:
    return _new(x, *x.shape)


def _task_act_bwd(g: Tensor, s: Tensor, act: int) -> Tensor:
    return _new(s, *s.shape)


def _task_act_bwd2(h: Tensor, g: Tensor, s: Tensor, act: int, need: int) -> tuple[Tensor, ...]:
    return _needed(s, need, s.shape, s.shape)


def _task_layer_norm(x: Tensor, w: Any, b: Any, eps: float) -> tuple[Tensor, ...]:
    rows = x.shape[:2]
    return _new(x, *x.shape), _new(x, *rows), _new(x, *rows)


def _task_layer_norm_bwd(
    g: Tensor, x: Tensor, w: Any, mean: Tensor, rstd: Tensor, need: int
) -> tuple[Tensor, ...]:
    vector = (x.shape[0], x.shape[2])
    return _needed(x, need, x.shape, vector, vector)


def _task_layer_norm_bwd2(
    hx: Any, hw: Any, hb: Any, g: Tensor, x: Tensor, w: Any, mean: Tensor, rstd: Tensor, need: int
) -> tuple[Tensor, ...]:
    return _needed(x, need, x.shape, x.shape, (x.shape[0], x.shape[2]))


def _task_cross_entropy(x: Tensor, target: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    return _new(x, len(x)), _new(x, *x.shape[:2])


def _task_cross_entropy_bwd(
    g: Tensor, x: Tensor, target: Tensor, lse: Tensor, ignore: int
) -> Tensor:
    return _new(x, *x.shape)


def _task_cross_entropy_bwd2(
    h: Tensor, g: Tensor, x: Tensor, target: Tensor, lse: Tensor, ignore: int, need: int
) -> tuple[Tensor, ...]:
    return _needed(x, need, (len(x),), x.shape)


def _task_attention(q: Tensor, k: Tensor, v: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _heads(q, q, v), q.new_empty(q.shape[:4], dtype=wide)


def _task_attention_bwd(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, *saved: Any
) -> tuple[Tensor, ...]:
    return _heads(q, q, q), _heads(q, k, k), _heads(q, v, v)


def _task_attention_bwd2(
    hq: Any, hk: Any, hv: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    pairs, need = ((q, v), (q, q), (k, k), (v, v)), rest[-1]
    return tuple(_heads(q, *p) if need >> i & 1 else _new(q, 0) for i, p in enumerate(pairs))


def _task_embedding(w: Tensor, ids: Tensor) -> Tensor:
    return _new(w, *ids.shape, w.shape[2])


def _task_embedding_grad(g: Tensor, ids: Tensor, rows: int) -> Tensor:
    return _new(g, g.shape[0], rows, g.shape[2])


def _dropout_mask(key: Tensor, size: int, p: float, dtype: torch.dtype) -> Tensor:
    _require_fake(key)
    return key.new_empty((len(key), size), dtype=dtype)


def _inner_update(
    p: Sequence[Tensor], g: Sequence[Tensor], rate: Sequence[Tensor], scale: float
) -> list[Tensor]:
    return [_new(x, *x.shape) for x in g]


def _inner_scale(g: Sequence[Tensor], rate: Sequence[Tensor], scale: float) -> list[Tensor]:
    return [_new(x, *x.shape) for x in g]


def _inner_rate_grad(
    h: Sequence[Tensor], g: Sequence[Tensor], scalar: Sequence[bool], scale: float
) -> list[Tensor]:
    return [_new(x, *(() if s else x.shape[1:])) for x, s in zip(g, scalar, strict=True)]


RAW_OPS: dict[str, Callable[..., Any]] = {
    "task_linear": _task_linear,
    "task_linear_dgrad": _task_linear_dgrad,
    "task_linear_wgrad": _task_linear_wgrad,
    "task_act": _task_act,
    "task_act_bwd": _task_act_bwd,
    "task_act_bwd2": _task_act_bwd2,
    "task_layer_norm": _task_layer_norm,
    "task_layer_norm_bwd": _task_layer_norm_bwd,
    "task_layer_norm_bwd2": _task_layer_norm_bwd2,
    "task_cross_entropy": _task_cross_entropy,
    "task_cross_entropy_bwd": _task_cross_entropy_bwd,
    "task_cross_entropy_bwd2": _task_cross_entropy_bwd2,
    "task_attention": _task_attention,
    "task_attention_bwd": _task_attention_bwd,
    "task_attention_bwd2": _task_attention_bwd2,
    "task_embedding": _task_embedding,
    "task_embedding_grad": _task_embedding_grad,
    "dropout_mask": _dropout_mask,
    "inner_update": _inner_update,
    "inner_scale": _inner_scale,
    "inner_rate_grad": _inner_rate_grad,
}
"""Those that language models reach, by name."""


def _new(like: Tensor, *size: int) -> Tensor:
    _require_fake(like)
    return like.new_empty(size)


def _needed(like: Tensor, need: int, *sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """One a size, without elements where its bit is not set."""
    return tuple(_new(like, *(s if need >> i & 1 else (0,))) for i, s in enumerate(sizes))


def _heads(like: Tensor, rows: Tensor, last: Tensor) -> Tensor:
    """``[tasks, batch, heads, rows, size]``, heads next to the last dimension in memory."""
    tasks, batch, heads, length = rows.shape[:4]
    return _new(like, tasks, batch, length, heads, last.shape[4]).transpose(2, 3)


def _require_fake(x: Tensor) -> None:
    if not isinstance(x, FakeTensor):
        raise ValueError(
            "backend='shapes' computes nothing: it is for fake tensors (plan_memory). Use "
            'backend="reference", or None for the fastest one.'
        )
