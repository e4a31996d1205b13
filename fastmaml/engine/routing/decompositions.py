"""Functions whose fused PyTorch kernels lack a derivative that the meta-gradient needs.

`MixedMode` differentiates gradients forwards: where only that is lacking, and only while it does,
the model runs the same formula written in operations that have every derivative. Where the second
derivative or the rule of vmap is lacking, it always does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def reduced(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """A loss's elements, times `weight`, as `reduction` says."""
    if weight is not None:
        loss = loss * weight
        if reduction == "mean":
            return loss.sum() / weight.expand_as(loss).sum()
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def reduction_of(size_average: Any, reduce: Any, reduction: str) -> str:
    """The reduction that old and new arguments of a loss name."""
    if size_average is None and reduce is None:
        return reduction
    return "none" if reduce is False else "sum" if size_average is False else "mean"


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(input - target)²."""
    reduction = reduction_of(size_average, reduce, reduction)
    return reduced((input - target).square(), weight, reduction)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Squared up to `delta`, linear beyond."""
    error = (input - target).abs()
    loss = torch.where(error <= delta, 0.5 * error.square(), delta * (error - 0.5 * delta))
    return reduced(loss, weight, reduction)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """log(1 + exp(-target·input))."""
    return reduced(F.softplus(-target * input), None, reduction_of(size_average, reduce, reduction))


def _of(function: Callable[[Tensor], Tensor], input: Tensor, inplace: bool) -> Tensor:
    """The function of the input, written there where it was to be."""
    return input.copy_(function(input.clone())) if inplace else function(input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x·σ(x)."""
    return _of(lambda x: x * x.sigmoid(), input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x·tanh(log(1 + eˣ))."""
    return _of(lambda x: x * F.softplus(x).tanh(), input, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6."""
    return _of(lambda x: F.relu6(x + 3) / 6, input, inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x above zero, α·(eˣ - 1) below.

    Torch's forward derivative of its gradient ends the interpreter (seen in 2.13) where the input
    has no tangent and tasks are batched.
    """
    return _of(partial(_elu, alpha=alpha, slope=1.0), input, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x above zero, α·(eˣᐟᵅ - 1) below."""
    # Torch takes α in float32 where it differentiates.
    slope = 1 / struct.unpack("f", struct.pack("f", alpha))[0]
    return _of(partial(_elu, alpha=alpha, slope=slope), input, inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """A scaled ELU whose mean and variance reproduce themselves."""
    return _of(lambda x: _SELU_SCALE * _elu(x, _SELU_ALPHA, 1.0), input, inplace)


def _elu(x: Tensor, alpha: float, slope: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1((slope * x).clamp(max=0)))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each group of channels of each example to mean 0 and variance 1, then scale and shift."""
    groups = input.reshape(input.shape[0], num_groups, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    result = (centred * scale).reshape(input.shape)
    channels: Sequence[int] = [-1, *[1] * (input.ndim - 2)]
    if weight is not None:
        result = result * weight.view(channels)
    return result if bias is None else result + bias.view(channels)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g·v/‖v‖, the norm over every dimension but `dim` (-1: over all).

    torch's own kernel has a second derivative, but a wrong one (seen in 2.13: gradgradcheck fails).
    """
    others = [d for d in range(v.ndim) if d != dim]
    square = v.abs().square() if v.is_complex() else v.square()
    return v * (g / square.sum(others, keepdim=True).sqrt())


def data(input: Tensor) -> Tensor:
    """`Tensor.data`, which to forward mode is no constant."""
    return input.detach()


ALWAYS: dict[Any, Callable[..., Tensor]] = {
    F.hardsigmoid: hardsigmoid,
    torch._weight_norm: weight_norm,
}
"""What stands in whenever the model runs inside the meta-step."""

FORWARD_MODE: dict[Any, Callable[..., Tensor]] = {
    F.mse_loss: mse_loss,
    F.huber_loss: huber_loss,
    F.soft_margin_loss: soft_margin_loss,
    F.silu: silu,
    F.mish: mish,
    F.elu: elu,
    F.elu_: partial(elu, inplace=True),
    F.celu: celu,
    torch.celu: celu,
    torch.celu_: partial(celu, inplace=True),
    F.selu: selu,
    torch.selu: selu,
    torch.selu_: partial(selu, inplace=True),
    F.group_norm: group_norm,
    Tensor.data.__get__: data,  # type: ignore[attr-defined]
}
"""What stands in while forward-mode differentiation is on."""
