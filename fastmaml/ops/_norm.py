"""The autograd functions that normalisations have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmaml.ops._function import TaskFunction, bits, filled, plus, third_derivative, wanted
from fastmaml.ops._third import third


def norm_function(op: str, data: int, fused: int = 0) -> type[TaskFunction]:
    """The family of an op ``(x, w, b, eps, *fused) -> (y, *data)``, by its first member.

    What follows y is read by the derivatives: it is data to the other members, which account for
    what it owes to x. They are ``op_bwd``, the gradients ``Jᵀ g`` of x, w and b, and ``op_bwd2``:
    ``J h``, and the gradients of ``<g, J h>`` by x and w.

    Args:
        op: its name among a backend's kernels.
        data: how many tensors follow y (mean, 1/std, ...).
        fused: how many settings follow eps.
    """

    class Norm(TaskFunction):
        """The result, and what its derivatives read."""

        @staticmethod
        def forward(kernels: Any, *given: Any) -> Any:
            return getattr(kernels, op)(*given)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.kernels, x, w, _, _, *ctx.fused = inputs
            y, *read = output
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*read)
            ctx.save_for_backward(x, w, *read)
            ctx.save_for_forward(x, w, *read, y)

        @staticmethod
        def backward(ctx: Any, g: Tensor | None, *_: None) -> Any:
            grads: Any = (None,) * 3
            if g is not None:
                need = bits(*ctx.needs_input_grad[1:4])
                grads = NormBwd.apply(ctx.kernels, g, *ctx.saved_tensors, *ctx.fused, need)
            return None, *grads, *(None,) * (1 + fused)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            *saved, y = ctx.saved_tensors  # y stands where a cotangent is asked for and not read
            given = (*tangents[1:4], y, *saved, *ctx.fused, 0b1)
            return NormBwd2.apply(ctx.kernels, *given)[0], *(None,) * data

    class NormBwd(TaskFunction):
        """The gradients of x, w and b: ``Jᵀ g``."""

        @staticmethod
        def forward(kernels: Any, *given: Any) -> tuple[Tensor | None, ...]:
            return wanted(getattr(kernels, f"{op}_bwd")(*given), given[-1])

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.kernels, ctx.need = inputs[0], inputs[-1]
            tensors, ctx.fused = inputs[1 : 4 + data], inputs[4 + data : -1]
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*output, *tensors)

        @staticmethod
        def backward(ctx: Any, *h: Tensor | None) -> Any:
            need = bits(*ctx.needs_input_grad[1:4])
            grads: Any = (None,) * 3
            if any(t is not None for t in h):
                grads = NormBwd2.apply(ctx.kernels, *h, *ctx.saved_tensors, *ctx.fused, need)
            return None, *grads, *(None,) * (data + fused + 1)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            _, tg, tx, tw, *_ = tangents
            *outputs, g = ctx.saved_tensors[:4]
            saved = (*ctx.saved_tensors[4:], *ctx.fused)
            t: Any = (None,) * 3
            if tg is not None:
                t = NormBwd.apply(ctx.kernels, tg, *saved, ctx.need)
            need = (ctx.need & 0b11) << 1  # the gradient of b depends on g alone
            if need and (tx is not None or tw is not None):
                _, of_x, of_w = NormBwd2.apply(ctx.kernels, tx, tw, None, g, *saved, need)
                t = plus(t[0], of_x), plus(t[1], of_w), t[2]
            return filled(t, outputs)

    class NormBwd2(TaskFunction):
        """``J h``, and the gradients of ``<g, J h>`` by x and w."""

        @staticmethod
        def forward(kernels: Any, *given: Any) -> tuple[Tensor | None, ...]:
            return wanted(getattr(kernels, f"{op}_bwd2")(*given), given[-1])

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.kernels, *tensors = inputs[: 7 + data]
            ctx.fused = inputs[7 + data : -1]
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors)

        @staticmethod
        def backward(ctx: Any, c: Tensor | None, *second: Tensor | None) -> Any:
            rest = (None,) * (data + fused + 1)
            *h, g, x, w = ctx.saved_tensors[:6]
            if any(t is not None for t in second):
                return None, *third(ctx.kernels, op, h, g, (x, w), (c, *second)), *rest
            if c is None:
                return (None,) * 7 + rest
            saved = (x, w, *ctx.saved_tensors[6:], *ctx.fused)
            _, to_hx, to_hw, to_hb, _, to_x, to_w, *_ = ctx.needs_input_grad
            of_h: Any = (None,) * 3
            of_x = of_w = None
            if to_hx or to_hw or to_hb:
                of_h = NormBwd.apply(ctx.kernels, c, *saved, bits(to_hx, to_hw, to_hb))
            if to_x or to_w:
                need = bits(False, to_x, to_w)
                _, of_x, of_w = NormBwd2.apply(ctx.kernels, *h, c, *saved, need)
            return None, *of_h, None, of_x, of_w, *rest

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            third_derivative(op)

    return Norm
