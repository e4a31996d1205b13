"""`task_attention` and its first and second derivatives, without a matrix of all probabilities."""

from __future__ import annotations

import contextlib

import torch

from . import attention_float64
from .attention_backward import backward
from .attention_checks import check_saved, checked, dense, lse_dtype
from .attention_forward import forward
from .attention_second import second
from .attention_work import Attention, block
from .launch import Launch

NEEDS = range(16)


@torch.library.custom_op("fastmaml_triton::task_attention", mutates_args=())
def task_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key: torch.Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o = (softmax(scale · q kᵀ + mask) ∘ dropout mask) v, a head at a time.

    Args:
        q: [tasks, batch, heads, rows, head size]; a task stride of 0 shares it. A last dimension
            that is not dense is copied, here and in k, v and the gradients.
        k: [tasks, batch, heads, keys, head size].
        v: [tasks, batch, heads, keys, outputs].
        mask: None, or of any floating dtype, expanded to [tasks, batch, heads, rows, keys]: strides
            of 0 are read as they are. A row whose keys are all -inf gives 0.
        key: int64 [tasks], from which the dropout masks follow; read if ``dropout`` is above 0.
        causal: whether row l sees only the keys s <= l.
        scale: of the products, usually head size ** -0.5.
        dropout: the probability of dropping a probability, resolved to 2^-32.

    Returns:
        o [tasks, batch, heads, rows, outputs], in memory (tasks, batch, rows, heads, outputs), and
        lse [tasks, batch, heads, rows], the log-sum-exp of the scores, float64 for float64, else
        float32.

    Raises:
        ValueError: shapes, dtypes, devices, ``key`` or ``dropout`` do not fit.
    """
    work = checked("task_attention", q, k, v, mask, key, causal, scale, dropout)
    if q.dtype == torch.float64:
        o, lse = attention_float64.forward(work)
        return heads_inner(o), lse
    o = like(q, v)
    lse = q.new_empty(q.shape[:4], dtype=torch.float32)
    run(work, [forward(work, block("forward", work), o, lse)])
    return o, lse


@task_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key: torch.Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return like(q, v), q.new_empty(q.shape[:4], dtype=lse_dtype(q.dtype))


@torch.library.custom_op("fastmaml_triton::task_attention_bwd", mutates_args=())
def task_attention_bwd(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key: torch.Tensor | None,
    o: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, from g like the output o; the rest as `task_attention` had it.

    Returns:
        gq, gk and gv, shaped like q, k and v, in memory (tasks, batch, rows or keys, heads, size).

    Raises:
        ValueError: shapes, dtypes, devices, ``key`` or ``dropout`` do not fit.
    """
    op = "task_attention_bwd"
    work = checked(op, q, k, v, mask, key, causal, scale, dropout)
    check_saved(op, work, g=g, o=o, lse=lse)
    if q.dtype == torch.float64:
        gq, gk, gv = attention_float64.backward(work, g, o)
        return heads_inner(gq), heads_inner(gk), heads_inner(gv)
    gq, gk, gv = like(q, q), like(k, k), like(v, v)
    out = {"gq": gq, "gk": gk, "gv": gv}
    run(work, backward(work, block("backward", work), dense(g), dense(o), lse.contiguous(), **out))
    return gq, gk, gv


@task_attention_bwd.register_fake
def _(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key: torch.Tensor | None,
    o: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return like(q, q), like(k, k), like(v, v)


@torch.library.custom_op("fastmaml_triton::task_attention_bwd2", mutates_args=())
def task_attention_bwd2(
    hq: torch.Tensor | None,
    hk: torch.Tensor | None,
    hv: torch.Tensor | None,
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key: torch.Tensor | None,
    o: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    need: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """How the output and the gradients for g move as (q, k, v) move along (hq, hk, hv).

    Args:
        hq, hk, hv: like q, k and v, or None for 0.
        g, q, k, v, mask, key, o, lse, causal, scale, dropout: as in `task_attention_bwd`.
        need: the sum of 1 for gg, 2 for gq, 4 for gk and 8 for gv: what is computed.

    Returns:
        gg, the derivative of o, and gq, gk and gv, those of `task_attention_bwd`'s; without
        elements where they are not needed.

    Raises:
        ValueError: shapes, dtypes, devices, ``key``, ``dropout`` or ``need`` do not fit.
    """
    op = "task_attention_bwd2"
    work = checked(op, q, k, v, mask, key, causal, scale, dropout)
    check_saved(op, work, g=g, o=o, lse=lse, hq=hq, hk=hk, hv=hv)
    if need not in NEEDS:
        raise ValueError(f"{op}: need is {need}, not a sum of 1, 2, 4 and 8.")
    tangents = still(hq, q), still(hk, k), still(hv, v)
    if q.dtype == torch.float64:
        every = [heads_inner(x) for x in attention_float64.second(work, tangents, g, o)]
        gg, gq, gk, gv = (x if need >> i & 1 else q.new_empty(0) for i, x in enumerate(every))
        return gg, gq, gk, gv
    gg, gq, gk, gv = wanted(q, k, v, need)
    out = tuple(x if need >> i & 1 else None for i, x in enumerate((gg, gq, gk, gv)))
    if need:
        saved = dense(g), dense(o), lse.contiguous()
        run(work, second(work, block("second", work), tangents, *saved, out))
    return gg, gq, gk, gv


@task_attention_bwd2.register_fake
def _(
    hq: torch.Tensor | None,
    hk: torch.Tensor | None,
    hv: torch.Tensor | None,
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key: torch.Tensor | None,
    o: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    need: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return wanted(q, k, v, need)


def still(h: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """A tangent of x; 0 where there is none, which takes no memory."""
    return x.new_zeros(x.shape[4]).expand_as(x) if h is None else dense(h)


def like(x: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Empty [T, B, H, x's length, last's size], heads next to the last dimension in memory."""
    tasks, batch, heads, length = x.shape[:4]
    return x.new_empty((tasks, batch, length, heads, last.shape[4])).transpose(2, 3)


def heads_inner(x: torch.Tensor) -> torch.Tensor:
    """x in the memory order of `like`."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def wanted(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, need: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for the results of `task_attention_bwd2`."""
    pairs = enumerate(((q, v), (q, q), (k, k), (v, v)))
    gg, gq, gk, gv = (like(*pair) if need >> i & 1 else q.new_empty(0) for i, pair in pairs)
    return gg, gq, gk, gv


def run(work: Attention, launches: list[Launch]) -> None:
    """On the device of the tensors."""
    on_device = work.q.device.type == "cuda"
    with torch.cuda.device(work.q.device) if on_device else contextlib.nullcontext():
        for launch in launches:
            launch.run()
