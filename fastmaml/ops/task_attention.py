# ruff: noqa: D102
"""Scaled dot-product attention of all tasks: `task_attention`."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fastmaml.ops._checks import prepared, same_device, same_tasks, shape
from fastmaml.ops._function import TaskFunction, bits, filled, plus, third_derivative, wanted
from fastmaml.ops._load import Kernels
from fastmaml.ops._third import third
from fastmaml.ops.dropout_mask import check_key, check_probability, reference_dropout_mask

OP = "task_attention"


def task_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Tensor | None = None,
    backend: str = "reference",
) -> Tensor:
    """``(softmax(scale q kᵀ + mask) ∘ D) v``, D a dropout mask (Vaswani et al., 2017).

    `torch.nn.functional.scaled_dot_product_attention` of every task, with second derivatives. The
    kernels go through the keys in tiles (Milakov and Gimelshein, 2018; Dao et al., 2022): no matrix
    of rows by keys is stored, neither going forward nor for derivatives, which compute it again.

    Args:
        q: ``[tasks, batch, heads, rows, size]``. Any strides, here and in k and v, as long as
            the last dimension is dense: what a projection gives, as a view, is not copied.
        k: ``[tasks, batch, heads, keys, size]``.
        v: ``[tasks, batch, heads, keys, outputs]``.
        mask: what is added to the scores, a constant, of the dtype of q, of a shape that broadcasts
            to ``[tasks, batch, heads, rows, keys]``. -inf hides a key; a row that sees no key
            gives 0.
        causal: whether row l sees only the keys s <= l.
        scale: None for ``size ** -0.5``.
        dropout: the probability with which a probability is dropped.
        key: ``[tasks]`` int64, of which the dropout masks are functions (`dropout_mask`); needed
            where dropout is above 0.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``[tasks, batch, heads, rows, outputs]``; from kernels in memory (tasks, batch, rows, heads,
        outputs), so that the next projection reads it as it is.

    Raises:
        ValueError: a shape, dtype or device does not fit (the tensor is named), the mask needs a
            gradient, dropout is no probability or lacks its key, or the backend is unknown or
            cannot take them.
    """
    _check_shapes(q, k, v, mask)
    check_probability(OP, "dropout", dropout)
    if dropout > 0:
        if key is None:
            raise ValueError(f"{OP}: dropout={dropout}, and key is None; give an int64 per task.")
        check_key(OP, key, "q", q)
        same_tasks(OP, "key", key, "q", q)
    found = prepared(OP, backend, q=q, k=k, v=v)
    scale = q.shape[4] ** -0.5 if scale is None else scale
    if found is None:
        return reference_task_attention(q, k, v, mask, key, causal, scale, dropout)
    return native_task_attention(found, q, k, v, mask, key, causal, scale, dropout)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    shape(OP, "q", q, "tasks", "batch", "heads", "rows", "size")
    _, batch, heads, rows, size = q.shape
    shape(OP, "k", k, "tasks", batch, heads, "keys", size)
    keys = k.shape[3]
    shape(OP, "v", v, "tasks", batch, heads, keys, "outputs")
    if size == 0:
        raise ValueError(f"{OP}: q has shape {list(q.shape)}; its last dimension is empty.")
    if mask is None:
        return
    if mask.dtype != q.dtype:
        raise ValueError(
            f"{OP}: mask is {mask.dtype}, q is {q.dtype}; give what is added to the scores, with "
            "-inf where a key is hidden."
        )
    same_device(OP, "mask", mask, "q", q)
    full = (len(q), batch, heads, rows, keys)
    if mask.ndim > 5 or any(
        m not in (1, n) for m, n in zip(reversed(mask.shape), reversed(full), strict=False)
    ):
        raise ValueError(
            f"{OP}: mask has shape {list(mask.shape)}, which does not broadcast to {list(full)}."
        )
    if mask.requires_grad:
        raise ValueError(
            f"{OP}: mask needs a gradient, and it is a constant here: detach it, or write the "
            "softmax out (a learnt bias)."
        )


def reference_task_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    key: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """The definition in PyTorch."""
    scores = scale * (q @ k.mT)
    if mask is not None:
        scores = scores + mask
    if causal:
        sees = torch.ones(scores.shape[3:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~sees, -torch.inf)
    blind = (scores == -torch.inf).all(4, keepdim=True)
    p = scores.masked_fill(blind, 0).softmax(4).masked_fill(blind, 0)
    if dropout > 0 and key is not None:
        p = p * reference_dropout_mask(key, p.shape[1:], dropout, p.dtype)
    return p @ v


def native_task_attention(
    kernels: Kernels,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    key: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """`task_attention` by the kernels of a backend."""
    mask = None if mask is None else mask.expand(*q.shape[:4], k.shape[3])
    key = key if dropout > 0 else None
    o: Tensor = Attention.apply(kernels, q, k, v, mask, key, causal, scale, dropout)[0]
    return o


@final
class Attention(TaskFunction):
    """The result, and what its derivatives read beside it: the log-sum-exp of every row's scores.

    Those two are data to the other members, which account for what they owe to q, k and v.
    """

    @staticmethod
    def forward(
        kernels: Kernels,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        key: Tensor | None,
        *how: Any,
    ) -> tuple[Tensor, Tensor]:
        o, lse = kernels.task_attention(q, k, v, mask, key, *how)
        return o, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.kernels, *tensors = inputs[:6]
        ctx.how = inputs[6:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _lse: None) -> Any:
        if ctx.needs_input_grad[4]:  # which `_check_shapes` cannot see inside vmap
            raise ValueError(f"{OP}: mask needs a gradient, and it is a constant here: detach it.")
        if g is None:
            return (None,) * 9
        grads = AttentionBwd.apply(ctx.kernels, g, *ctx.saved_tensors, *ctx.how)
        return None, *grads, *(None,) * 5

    @staticmethod
    def jvp(
        ctx: Any,
        _kernels: None,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        tmask: Tensor | None,
        *_: None,
    ) -> Any:
        if tmask is not None:
            raise ValueError(f"{OP}: mask has a tangent, and it is a constant here: detach it.")
        o = ctx.saved_tensors[5]  # it stands where a cotangent is asked for and not read
        along = tq, tk, tv, o
        t = AttentionBwd2.apply(ctx.kernels, *along, *ctx.saved_tensors, *ctx.how, 0b1)[0]
        return t, None


@final
class AttentionBwd(TaskFunction):
    """The gradients of q, k and v: ``Jᵀ g``."""

    @staticmethod
    def forward(kernels: Kernels, g: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        gq, gk, gv = kernels.task_attention_bwd(g, *rest)
        return gq, gk, gv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, *tensors = inputs[:9]
        ctx.how = inputs[9:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> Any:
        need = bits(*ctx.needs_input_grad[1:5])
        grads: Any = (None,) * 4
        if any(t is not None for t in h):
            grads = AttentionBwd2.apply(ctx.kernels, *h, *ctx.saved_tensors, *ctx.how, need)
        return None, *grads, *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tg: Tensor | None, *tangents: Tensor | None) -> Any:
        outputs, g, saved = ctx.saved_tensors[:3], ctx.saved_tensors[3], ctx.saved_tensors[4:]
        along = tangents[:3]
        t: Any = (None,) * 3
        if tg is not None:
            t = AttentionBwd.apply(ctx.kernels, tg, *saved, *ctx.how)
        if any(x is not None for x in along):
            second = AttentionBwd2.apply(ctx.kernels, *along, g, *saved, *ctx.how, 0b1110)
            t = [plus(a, b) for a, b in zip(t, second[1:], strict=True)]
        return filled(t, outputs)


@final
class AttentionBwd2(TaskFunction):
    """``J h``, and the gradients of ``<g, J h>`` by q, k and v."""

    @staticmethod
    def forward(kernels: Kernels, *given: Any) -> tuple[Tensor | None, ...]:
        return wanted(kernels.task_attention_bwd2(*given), given[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, *tensors = inputs[:12]
        *ctx.how, _ = inputs[12:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, *second: Tensor | None) -> Any:
        *h, g, q, k, v, mask, key, o, lse = ctx.saved_tensors
        if any(t is not None for t in second):
            found = third(ctx.kernels, OP, h, g, (q, k, v), (c, *second))
            return None, *found, *(None,) * 8
        if c is None:
            return (None,) * 16
        saved = (q, k, v, mask, key, o, lse)
        of_h: Any = (None,) * 3
        of: Any = (None,) * 3
        if any(ctx.needs_input_grad[1:4]):
            of_h = AttentionBwd.apply(ctx.kernels, c, *saved, *ctx.how)
        if any(ctx.needs_input_grad[5:8]):
            need = bits(False, *ctx.needs_input_grad[5:8])
            of = AttentionBwd2.apply(ctx.kernels, *h, c, *saved, *ctx.how, need)[1:]
        return None, *of_h, None, *of, *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        third_derivative(OP)
