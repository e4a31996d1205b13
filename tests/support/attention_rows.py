"""The op table's rows of attention and embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from op_row import Row, randn, scattered, shared
from torch import Tensor

from fastmaml.ops.task_attention import native_task_attention, reference_task_attention
from fastmaml.ops.task_embedding import native_task_embedding, reference_task_embedding


def projected(t: int, b: int, h: int, n: int, d: int, seed: int) -> Tensor:
    """A projection's output as heads: dense as (tasks, batch, rows, heads, size)."""
    return randn(t, b, n, h, d, seed=seed).transpose(2, 3)


def padding(t: int, b: int, keys: int, hidden: float) -> Tensor:
    """[tasks, batch, 1, 1, keys]: the last keys of every other example, all of one, are hidden."""
    mask = torch.zeros(t, b, 1, 1, keys, dtype=torch.float64)
    mask[:, ::2, ..., keys // 2 :] = hidden
    mask[:, -1:] = hidden
    return mask


def attention_rows() -> Iterator[Row]:
    """q, k, v are [tasks, batch, heads, rows or keys, size or outputs]; masks are constants."""

    def make(case: str, *sizes: int, mask: Any = None, **how: Any) -> Row:
        t, b, h, n, s, d, e = sizes
        told = {name: how.pop(name, False) for name in ("small", "shared", "scattered", "heads")}
        kind = randn if told["heads"] else projected
        how = {"causal": False, "scale": d**-0.5, "dropout": 0.0, **how}

        def inputs() -> tuple[Tensor, ...]:
            q, k, v = (
                kind(t, b, h, m, w, seed=i) for i, (m, w) in enumerate(((n, d), (s, d), (s, e)))
            )
            q = scattered(q) if told["scattered"] else q
            return (q, *(shared(x, t) for x in (k, v))) if told["shared"] else (q, k, v)

        keys = {n: torch.arange(5, 5 + n) << 20 for n in {t, 1}}
        masks = {} if mask is None else {n: mask(n) for n in {t, 1}}

        def constants(x: Tensor) -> dict[str, Any]:
            """For as many tasks as x has, which a vmap may have made one."""
            found = masks[len(x)].to(x) if masks else None
            return {"mask": found, "key": keys[len(x)].to(x.device), **how}

        return Row(
            "task_attention",
            case,
            lambda kernels, q, k, v: native_task_attention(kernels, q, k, v, **constants(q)),
            lambda q, k, v: reference_task_attention(q, k, v, **constants(q)),
            inputs,
            small=told["small"],
        )

    def padded(b: int, keys: int, hidden: float = -torch.inf) -> Any:
        return lambda t: padding(t, b, keys, hidden)

    def biased(*shape: int) -> Any:
        return lambda t: randn(*shape, seed=7)

    yield make("small", 2, 1, 2, 3, 4, 2, 3, small=True)
    yield make("small-causal", 2, 2, 1, 3, 2, 2, 2, small=True, causal=True)
    yield make("small-mask", 2, 2, 1, 2, 4, 3, 2, small=True, mask=padded(2, 4))
    yield make("small-dropout", 2, 1, 2, 3, 4, 2, 2, small=True, dropout=0.4)
    yield make("bert", 2, 3, 4, 32, 32, 32, 32, mask=padded(3, 32))
    yield make("lowest", 2, 3, 2, 9, 7, 16, 16, mask=padded(3, 7, torch.finfo(torch.float32).min))
    yield make("biased", 2, 2, 3, 5, 19, 8, 8, mask=biased(3, 5, 19))
    yield make("biased-rows", 2, 2, 3, 5, 19, 8, 8, mask=biased(2, 1, 5, 1))
    yield make("odd", 3, 1, 2, 97, 131, 17, 33, heads=True)
    yield make("causal-wide", 1, 1, 2, 67, 150, 8, 5, causal=True)
    yield make("causal-tall", 1, 1, 2, 150, 67, 5, 8, causal=True)
    yield make("long", 1, 1, 1, 140, 600, 8, 8, dropout=0.1, mask=padded(1, 1, 0.0))
    yield make("long-causal", 1, 1, 1, 600, 600, 4, 4, causal=True)
    yield make("dropout", 2, 2, 2, 33, 65, 64, 64, dropout=0.5, mask=padded(2, 65))
    yield make("dropped", 1, 1, 2, 3, 4, 2, 2, dropout=1.0)
    yield make("wide", 1, 1, 1, 5, 6, 128, 256)
    yield make("one", 1, 1, 1, 1, 1, 1, 1)
    yield make("shared", 3, 2, 2, 5, 7, 8, 8, shared=True)
    yield make("scattered", 3, 2, 2, 5, 7, 8, 8, scattered=True)
    for case, sizes in (
        ("tasks", (0, 1, 2, 3, 4, 2, 2)),
        ("rows", (2, 1, 2, 0, 4, 2, 2)),
        ("keys", (2, 1, 2, 3, 0, 2, 2)),
        ("outputs", (2, 1, 2, 3, 4, 2, 0)),
    ):
        yield make(f"empty-{case}", *sizes)


def embedding_rows() -> Iterator[Row]:
    def make(case: str, t: int, rows: int, n: int, d: int, **how: Any) -> Row:
        padding_idx = how.get("padding_idx")

        def inputs() -> tuple[Tensor, ...]:
            made = torch.Generator().manual_seed(1)
            ids = torch.randint(max(rows, 1), (t, n), generator=made)
            if padding_idx is not None:
                ids[:, ::3] = padding_idx % rows
            w = randn(t, rows, d)
            w = shared(w, t) if how.get("shared") else w
            return (scattered(w) if how.get("scattered") else w), ids

        return Row(
            "task_embedding",
            case,
            lambda k, w, ids: native_task_embedding(k, w, ids, padding_idx),
            lambda w, ids: reference_task_embedding(w, ids, padding_idx),
            inputs,
            small=how.get("small", False),
        )

    yield make("small", 2, 3, 4, 2, small=True)
    yield make("padding", 2, 4, 6, 2, padding_idx=-1)
    yield make("odd", 3, 97, 131, 33, padding_idx=0)
    yield make("repeated", 2, 2, 300, 17)
    yield make("shared", 3, 1000, 17, 64, shared=True)
    yield make("scattered", 3, 5, 7, 9, scattered=True)
    yield make("one", 1, 1, 1, 1)
    yield make("empty-tasks", 0, 5, 3, 4)
    yield make("empty-ids", 2, 5, 0, 4)
    yield make("empty-features", 2, 5, 3, 0)
