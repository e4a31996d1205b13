# ruff: noqa: D102
"""One inner step of all parameters of all tasks at once: `inner_update`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from fastmaml.ops._function import filled
from fastmaml.ops._lists import ListFunction, Maybe, chunks, halves, mapped, prepared, summed, those
from fastmaml.ops._load import Kernels


def inner_update(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    rate: Sequence[Tensor] | None = None,
    *,
    scale: float,
    backend: str = "reference",
) -> list[Tensor]:
    """``p'[t] = p[t] + scale * rate ∘ g[t]`` for every parameter, in one launch.

    Gradient descent (``scale=-lr``), and with ``scale=-1`` learned rates: Meta-SGD (Li et al.,
    2017, arXiv 1707.09835) and LSLR (Antoniou et al., 2019, arXiv 1810.09502).

    Args:
        p: parameters, each ``[tasks, *shape]``. Those that all tasks share are expanded, and not
            copied.
        g: gradients, in the shapes of p.
        rate: None or empty for 1, or for every parameter its rates, ``[*shape]`` or ``[]``, which
            all tasks share.
        scale: of every step.
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        The new parameters, in the shapes of p.

    Raises:
        ValueError: the lists differ in length, a shape, dtype or device does not fit (the tensor is
            named), or the backend is unknown or cannot take them.
    """
    p, g, rate = list(p), list(g), list(rate or ())
    found = prepared("inner_update", backend, p, rate, g=g)
    if found is None:
        return reference_inner_update(p, g, rate, scale)
    return native_inner_update(found, p, g, rate, scale)


def reference_inner_update(
    p: Sequence[Tensor], g: Sequence[Tensor], rate: Sequence[Tensor], scale: float
) -> list[Tensor]:
    """The definition in PyTorch."""
    steps = (
        [scale * b * r for b, r in zip(g, rate, strict=True)] if rate else [scale * b for b in g]
    )
    return [a + b for a, b in zip(p, steps, strict=True)]


def native_inner_update(
    kernels: Kernels,
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    rate: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """`inner_update` by the kernels of a backend."""
    return list(InnerUpdate.apply(kernels, scale, len(p), *p, *g, *rate)) if p else []


# The family is closed. With d = scale * rate ∘ g, inner_scale gives d, and inner_rate_grad
# Σ over tasks of scale * h ∘ g: every derivative of one is another. Lists are passed flat, as
# autograd asks: first the numbers, then the tensors of p, g and rate in turn.


@final
class InnerUpdate(ListFunction):
    """``p + scale * rate ∘ g``."""

    per_task = 2

    @staticmethod
    def forward(kernels: Kernels, scale: float, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        p, g, rate = tensors[:n], tensors[n : 2 * n], tensors[2 * n :]
        return tuple(kernels.inner_update(p, g, rate, scale))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, ctx.scale, ctx.n, *tensors = inputs
        ctx.set_materialize_grads(False)
        # Gradients are kept for the rates alone.
        saved = tensors[ctx.n :] if len(tensors) > 2 * ctx.n else []
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*output, *saved)

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> Any:
        g, rate = halves(ctx)
        _, to_g, to_rate = chunks(ctx.needs_input_grad[3:], ctx.n)
        gg = scaled(ctx, those(h, to_g), rate)
        return None, None, None, *h, *gg, *rate_gradients(ctx, those(h, to_rate), g, rate)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        outputs, g, rate = chunks(ctx.saved_tensors, ctx.n)
        tp, tg, trate = chunks(tangents[3:], ctx.n)
        moved = summed(scaled(ctx, tg, rate), scaled(ctx, g, trate))
        return filled(summed(tp, moved), outputs)


@final
class InnerScale(ListFunction):
    """``scale * rate ∘ g``."""

    per_task = 1

    @staticmethod
    def forward(kernels: Kernels, scale: float, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(kernels.inner_scale(tensors[:n], tensors[n:], scale))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, ctx.scale, ctx.n, *tensors = inputs
        ctx.set_materialize_grads(False)
        saved = tensors if len(tensors) > ctx.n else []
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*output, *saved)

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> Any:
        g, rate = halves(ctx)
        to_g, to_rate, _ = chunks(ctx.needs_input_grad[3:], ctx.n)
        gg = scaled(ctx, those(h, to_g), rate)
        return None, None, None, *gg, *rate_gradients(ctx, those(h, to_rate), g, rate)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        outputs, g, rate = chunks(ctx.saved_tensors, ctx.n)
        tg, trate, _ = chunks(tangents[3:], ctx.n)
        return filled(summed(scaled(ctx, tg, rate), scaled(ctx, g, trate)), outputs)


@final
class InnerRateGrad(ListFunction):
    """``Σ scale * h ∘ g`` over tasks, ``[*shape]``; over all, ``[]``, where `scalar`."""

    per_task = 2

    @staticmethod
    def forward(
        kernels: Kernels, scale: float, n: int, scalar: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(kernels.inner_rate_grad(tensors[:n], tensors[n:], list(scalar), scale))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, ctx.scale, ctx.n, ctx.scalar, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *c: Tensor | None) -> Any:
        h, g = halves(ctx)
        to_h, to_g, _ = chunks(ctx.needs_input_grad[4:], ctx.n)
        gh, gg = scaled(ctx, g, those(c, to_h)), scaled(ctx, h, those(c, to_g))
        return None, None, None, None, *gh, *gg

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        outputs, h, g = chunks(ctx.saved_tensors, ctx.n)
        th, tg, _ = chunks(tangents[4:], ctx.n)
        sums = summed(_products(ctx, th, g, ctx.scalar), _products(ctx, h, tg, ctx.scalar))
        return filled(sums, outputs)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """The mapped dimension becomes part of the shapes, which are not summed over."""
        size = info.batch_size
        kernels, scale, n, scalar, *tensors = args
        inside = [mapped(x, dim, size, 1) for x, dim in zip(tensors, in_dims[4:], strict=True)]
        sums = cls.apply(kernels, scale, n, (False,) * n, *inside)
        outputs = [
            s.flatten(1).sum(1) if s.ndim > 1 and one else s
            for s, one in zip(sums, scalar, strict=True)
        ]
        return tuple(outputs), (0,) * n


def scaled(ctx: Any, g: Maybe, rate: Maybe) -> list[Tensor | None]:
    """`InnerScale` of the pairs where nothing is None; without rates, of all that is not None."""
    rates: Maybe = rate or [None] * len(g)
    there = [
        i
        for i, (x, r) in enumerate(zip(g, rates, strict=False))
        if x is not None and (r is not None or not rate)
    ]
    result: list[Tensor | None] = [None] * max(len(g), len(rate))
    if there:
        mine = [rates[i] for i in there] if rate else []
        products = InnerScale.apply(
            ctx.kernels, ctx.scale, len(there), *(g[i] for i in there), *mine
        )
        for i, x in zip(there, products, strict=True):
            result[i] = x
    return result


def _products(ctx: Any, h: Maybe, g: Maybe, scalar: Sequence[bool]) -> list[Tensor | None]:
    """`InnerRateGrad` of the pairs where nothing is None."""
    there = [
        i for i, (x, y) in enumerate(zip(h, g, strict=False)) if x is not None and y is not None
    ]
    result: list[Tensor | None] = [None] * len(h)
    if there:
        mine = (*(h[i] for i in there), *(g[i] for i in there))
        which = tuple(scalar[i] for i in there)
        sums = InnerRateGrad.apply(ctx.kernels, ctx.scale, len(there), which, *mine)
        for i, x in zip(there, sums, strict=True):
            result[i] = x
    return result


def rate_gradients(
    ctx: Any, h: Maybe, g: Sequence[Tensor], rate: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of the rates, if there are any."""
    return _products(ctx, h, g, [r.ndim == 0 for r in rate]) if rate else []
