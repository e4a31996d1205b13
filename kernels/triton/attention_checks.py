"""What attention asks of its arguments before a pointer is taken."""

from __future__ import annotations

import torch

from . import checks
from .attention_forward import forward_kernel
from .attention_work import Attention

WIDEST = 128


def checked(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key: torch.Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> Attention:
    """The arguments, complained of or ready for the kernels."""
    ranks = dict.fromkeys("qkv", 5)
    checks.tensors(op, forward_kernel, ranks, q=q, k=k, v=v)
    checks.sizes(op, "the shape of k without its keys", drop_keys(k), drop_keys(q))
    checks.sizes(op, "the shape of v up to its keys", v.shape[:4], k.shape[:4])
    for name, x in {"q": q, "v": v}.items():
        if x.shape[4] > WIDEST:
            raise ValueError(f"{op}: {name}'s heads have size {x.shape[4]}; up to {WIDEST} fit.")
    if mask is not None:
        checks.sizes(op, "the shape of mask", mask.shape, (*q.shape[:4], k.shape[3]))
        if not mask.is_floating_point() or mask.device != q.device:
            raise ValueError(f"{op}: mask is {mask.dtype} on {mask.device}, not floating like q.")
    if not 0 <= dropout <= 1:
        raise ValueError(f"{op}: dropout is {dropout}, not a probability.")
    if dropout > 0:
        if key is None:
            raise ValueError(f"{op}: dropout is {dropout} and needs key, an int64 for each task.")
        checks.sizes(op, "the shape of key", key.shape, q.shape[:1])
        if key.dtype != torch.int64 or key.device != q.device:
            raise ValueError(f"{op}: key is {key.dtype} on {key.device}, not int64 like q.")
        key = key.contiguous()
    checks.limits(op, rows=q.shape[3], keys=k.shape[3])
    return Attention(
        dense(q), dense(k), dense(v), mask, key if dropout > 0 else None, causal, scale, dropout
    )


def check_saved(op: str, work: Attention, **named: torch.Tensor | None) -> None:
    """What a derivative is given besides has the shape, dtype and device of what it belongs to."""
    o = (*work.q.shape[:4], work.v.shape[4])
    shapes = {"g": o, "o": o, "lse": o[:4]}
    shapes |= {f"h{name}": getattr(work, name).shape for name in "qkv"}
    for name, x in named.items():
        if x is None:
            continue
        checks.sizes(op, f"the shape of {name}", x.shape, shapes[name])
        dtype = lse_dtype(work.q.dtype) if name == "lse" else work.q.dtype
        if x.dtype != dtype or x.device != work.q.device:
            raise ValueError(
                f"{op}: {name} is {x.dtype} on {x.device}, q {work.q.dtype} on {work.q.device}."
            )


def drop_keys(x: torch.Tensor) -> list[int]:
    """The shape without the length."""
    return [*x.shape[:3], x.shape[4]]


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the log-sum-exp of scores of ``dtype``."""
    return dtype if dtype == torch.float64 else torch.float32


def dense(x: torch.Tensor) -> torch.Tensor:
    """x with its last dimension dense, copied if it is not; shared by the tasks stays so."""
    if x.shape[4] == 1 or x.stride(4) == 1:
        return x
    if x.stride(0) == 0 and x.shape[0] > 1:
        return dense(x[:1]).expand_as(x)
    return x.contiguous()
