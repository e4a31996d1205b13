# ruff: noqa: D102
"""One inner step with momentum, of all parameters of all tasks at once: `inner_momentum`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from fastmaml.ops._function import filled
from fastmaml.ops._lists import ListFunction, prepared, summed, those, times
from fastmaml.ops._load import Kernels
from fastmaml.ops.inner_update import rate_gradients, reference_inner_update, scaled


def inner_momentum(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    v: Sequence[Tensor],
    rate: Sequence[Tensor] | None = None,
    *,
    scale: float,
    momentum: float,
    nesterov: bool = False,
    backend: str = "reference",
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradient descent with momentum (Sutskever et al., 2013), for every parameter, in one launch.

    ``v' = momentum v + g`` and ``p' = p + scale * rate ∘ v'``, or, by Nesterov,
    ``p' = p + scale * rate ∘ (g + momentum v')``, as `torch.optim.SGD` without dampening.

    Args:
        p, g, rate, scale, backend: as in `inner_update`.
        v: velocities, in the shapes of p.
        momentum: what is kept of the velocity.
        nesterov: whether to look ahead.

    Returns:
        The new parameters and the new velocities, in the shapes of p.

    Raises:
        ValueError: as in `inner_update`.
    """
    p, g, v, rate = list(p), list(g), list(v), list(rate or ())
    found = prepared("inner_momentum", backend, p, rate, g=g, v=v)
    if found is None:
        return reference_inner_momentum(p, g, v, rate, scale, momentum, nesterov)
    return native_inner_momentum(found, p, g, v, rate, scale, momentum, nesterov)


def reference_inner_momentum(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    v: Sequence[Tensor],
    rate: Sequence[Tensor],
    scale: float,
    momentum: float,
    nesterov: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The definition in PyTorch."""
    new = [momentum * a + b for a, b in zip(v, g, strict=True)]
    step = [b + momentum * a for a, b in zip(new, g, strict=True)] if nesterov else new
    return reference_inner_update(p, step, rate, scale), new


def native_inner_momentum(
    kernels: Kernels,
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    v: Sequence[Tensor],
    rate: Sequence[Tensor],
    scale: float,
    momentum: float,
    nesterov: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """`inner_momentum` by the kernels of a backend."""
    n = len(p)
    if not n:
        return [], []
    new = InnerMomentum.apply(kernels, scale, n, momentum, nesterov, *p, *g, *v, *rate)
    return list(new[:n]), list(new[n:])


@final
class InnerMomentum(ListFunction):
    """``p + scale * rate ∘ d`` and ``v' = momentum v + g``, with d = v', or g + momentum v'."""

    per_task = 3

    @staticmethod
    def forward(
        kernels: Kernels, scale: float, n: int, momentum: float, nesterov: bool, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        p, g, v, rate = (tensors[i * n : (i + 1) * n] for i in range(4))
        new_p, new_v = kernels.inner_momentum(p, g, v, rate, scale, momentum, nesterov)
        return *new_p, *new_v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernels, ctx.scale, ctx.n, ctx.momentum, ctx.nesterov, *tensors = inputs
        ctx.set_materialize_grads(False)
        n = ctx.n
        ctx.rates = len(tensors) > 3 * n
        saved: list[Tensor] = []
        if ctx.rates:
            saved = [*tensors[n : 2 * n], *output[n:], *tensors[3 * n :]]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved, *output)

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> Any:
        n = ctx.n
        hp, hv = h[:n], h[n:]
        step, rate = _step(ctx)
        hd = scaled(ctx, hp, rate)
        if ctx.nesterov:
            total = summed(hv, times(ctx.momentum, hd))
            gg = summed(total, hd)
        else:
            gg = total = summed(hv, hd)
        to_rate = ctx.needs_input_grad[5 + 3 * n :]
        of_rate = rate_gradients(ctx, those(hp, to_rate), step, rate)
        return *(None,) * 5, *hp, *gg, *times(ctx.momentum, total), *of_rate

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        n = ctx.n
        tp, tg, tv, trate = (tangents[5 + i * n : 5 + (i + 1) * n] for i in range(4))
        new = summed(times(ctx.momentum, tv), tg)
        ahead = summed(tg, times(ctx.momentum, new)) if ctx.nesterov else new
        step, rate = _step(ctx)
        moved = summed(scaled(ctx, ahead, rate), scaled(ctx, step, trate))
        return filled((*summed(tp, moved), *new), ctx.saved_tensors[-2 * n :])


def _step(ctx: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What the rates multiply in `InnerMomentum`, and the rates; nothing, without rates."""
    if not ctx.rates:
        return [], []
    g, v, rate = (ctx.saved_tensors[i * ctx.n : (i + 1) * ctx.n] for i in range(3))
    if not ctx.nesterov:
        return list(v), list(rate)
    return [a + ctx.momentum * b for a, b in zip(g, v, strict=True)], list(rate)
