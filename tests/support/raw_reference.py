"""Every raw op in plain PyTorch formulas: the kernels that the autograd functions are tested on.

They are registered with the schemas of csrc/schemas.cpp, as the native ones are: opaque, and
without derivatives. Nothing here is differentiated; each derivative is written out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import raw_attention  # noqa: F401  # notes its ops
import raw_norms  # noqa: F401
import torch
import torch.nn.functional as F
from places import ROOT
from raw_registry import FUNCTIONS, channels_last, nothing, only, raw
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmaml.ops._load import Kernels
from fastmaml.ops.task_act import at_input

SCHEMAS = ROOT / "csrc" / "schemas.cpp"
LIBRARY = torch.library.Library("fastmaml_check", "DEF")


@functools.cache
def raw_kernels() -> Kernels:
    schemas = re.findall(r'm\.def\("((\w+)\(.*?)"\)', SCHEMAS.read_text())
    for schema, name in schemas:
        LIBRARY.define(schema)
        LIBRARY.impl(name, fresh(FUNCTIONS[name]), "CompositeExplicitAutograd")
    ops = {name: getattr(torch.ops.fastmaml_check, name).default for _, name in schemas}
    assert ops.keys() == FUNCTIONS.keys()
    dtypes = frozenset({torch.float32, torch.float64})
    return Kernels("raw_reference", frozenset({"cpu", "cuda"}), dtypes, ops)


def fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with outputs that are views of nothing, as a kernel's are."""

    def run(*args: Any) -> Any:
        return tree_map(lambda x: x.clone() if x._is_view() else x, function(*args))

    return run


# Activations: a(x), and a' and its derivative as functions of what is saved.


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / 2**0.5))


def normal_pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


def tanh_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    c = (2 / torch.pi) ** 0.5
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return t, c * (1 + 3 * 0.044715 * x**2), c * 6 * 0.044715 * x


def gelu_tanh_first(x: Tensor) -> Tensor:
    t, u1, _ = tanh_parts(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * u1


def gelu_tanh_second(x: Tensor) -> Tensor:
    t, u1, u2 = tanh_parts(x)
    return (1 - t * t) * (u1 + 0.5 * x * (u2 - 2 * t * u1 * u1))


def silu_first(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def silu_second(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


VALUE = (
    lambda x: x.clone(),
    lambda x: torch.where(x <= 0, 0, x),
    torch.tanh,
    lambda x: x * normal_cdf(x),
    lambda x: 0.5 * x * (1 + tanh_parts(x)[0]),
    torch.sigmoid,
    lambda x: x * torch.sigmoid(x),
)
FIRST = (
    torch.ones_like,
    lambda s: torch.where(s <= 0, torch.zeros_like(s), 1),
    lambda s: 1 - s * s,
    lambda s: normal_cdf(s) + s * normal_pdf(s),
    gelu_tanh_first,
    lambda s: s * (1 - s),
    silu_first,
)
SECOND = (
    torch.zeros_like,
    torch.zeros_like,
    lambda s: -2 * s,
    lambda s: normal_pdf(s) * (2 - s * s),
    gelu_tanh_second,
    lambda s: 1 - 2 * s,
    silu_second,
)


@raw
def task_act(x: Tensor, act: int) -> Tensor:
    return VALUE[act](x)


@raw
def task_act_bwd(g: Tensor, s: Tensor, act: int) -> Tensor:
    return g * FIRST[act](s)


@raw
def task_act_bwd2(h: Tensor, g: Tensor, s: Tensor, act: int, need: int) -> tuple[Tensor, ...]:
    return only(need, lambda: h * FIRST[act](s), lambda: h * g * SECOND[act](s))


@raw
def task_linear(x: Tensor, w: Tensor, b: Tensor | None, act: int) -> tuple[Tensor, Tensor]:
    z = torch.einsum("tni,toi->tno", x, w) + (0 if b is None else b[:, None])
    return VALUE[act](z), z if at_input(act) else nothing()


@raw
def task_linear_dgrad(g: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("tno,toi->tni", g, w).contiguous()


@raw
def task_linear_wgrad(g: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    return torch.einsum("tno,tni->toi", g, x), g.sum(1) if bias else nothing()


# Convolutions, as products with the windows of the images: [tasks, examples, in * kernel, pixels].


def windows(x: Tensor, kernel: Any, geometry: tuple[Any, Any, Any]) -> Tensor:
    stride, padding, dilation = (tuple(g) for g in geometry)
    columns = F.unfold(x.flatten(0, 1), tuple(kernel), dilation, padding, stride)
    return columns.unflatten(0, x.shape[:2])


@raw
def task_conv2d(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    columns = windows(x, w.shape[3:], (stride, padding, dilation))
    y = torch.einsum("tok,tnkp->tnop", w.flatten(2), columns)
    height = (x.shape[3] + 2 * padding[0] - dilation[0] * (w.shape[3] - 1) - 1) // stride[0] + 1
    y = y + (0 if b is None else b[:, None, :, None])
    return channels_last(y.unflatten(3, (height, -1)))


@raw
def task_conv2d_dgrad(
    g: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, size: Any
) -> Tensor:
    columns = torch.einsum("tok,tnop->tnkp", w.flatten(2), g.flatten(3)).flatten(0, 1)
    x = F.fold(columns, tuple(size), w.shape[3:], tuple(dilation), tuple(padding), tuple(stride))
    return channels_last(x.unflatten(0, g.shape[:2]))


@raw
def task_conv2d_wgrad(
    g: Tensor, x: Tensor, stride: Any, padding: Any, dilation: Any, kernel: Any, bias: bool
) -> tuple[Tensor, Tensor]:
    columns = windows(x, kernel, (stride, padding, dilation))
    w = torch.einsum("tnop,tnkp->tok", g.flatten(3), columns)
    return w.unflatten(2, (x.shape[2], *kernel)), g.sum((1, 3, 4)) if bias else nothing()


# Losses.


def softmax_minus_onehot(x: Tensor, target: Tensor, lse: Tensor, ignore: int) -> tuple[Tensor, ...]:
    """The gradient of every example's loss, the softmax, and the weight of every example."""
    counts = target != ignore
    p = torch.exp(x - lse[..., None])
    onehot = torch.arange(x.shape[2], device=x.device) == target[..., None]
    weight = torch.where(counts, 1 / counts.sum(1, keepdim=True).to(x.dtype), 0)
    return p - onehot.to(x.dtype), p, weight[..., None]


@raw
def task_cross_entropy(x: Tensor, target: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    counts = target != ignore
    if ((target < 0) | (target >= x.shape[2]))[counts].any():
        raise RuntimeError("task_cross_entropy: target has a label out of range")
    lse = x.logsumexp(2)
    label = torch.where(counts, target, 0)
    each = torch.where(counts, lse - x.gather(2, label[..., None])[..., 0], 0)
    return each.sum(1) / counts.sum(1), lse


@raw
def task_cross_entropy_bwd(
    g: Tensor, x: Tensor, target: Tensor, lse: Tensor, ignore: int
) -> Tensor:
    d, _, weight = softmax_minus_onehot(x, target, lse, ignore)
    return g[:, None, None] * weight * d


@raw
def task_cross_entropy_bwd2(h, g, x, target, lse, ignore, need):
    d, p, weight = softmax_minus_onehot(x, target, lse, ignore)
    return only(
        need,
        lambda: (weight * d * h).sum((1, 2)),
        lambda: g[:, None, None] * weight * p * (h - (p * h).sum(2, keepdim=True)),
    )


def each(g: Tensor, x: Tensor) -> Tensor:
    """[tasks] over the elements of x, divided by their number."""
    return g.view(-1, *[1] * (x.ndim - 1)) / max(x[:1].numel(), 1)


@raw
def task_mse(x: Tensor, target: Tensor) -> Tensor:
    return (x - target).square().reshape(len(x), x[:1].numel()).mean(1)


@raw
def task_mse_bwd(g: Tensor, x: Tensor, target: Tensor) -> Tensor:
    return 2 * each(g, x) * (x - target)


@raw
def task_mse_bwd2(h: Tensor, g: Tensor, x: Tensor, target: Tensor, need: int) -> tuple[Tensor, ...]:
    return only(
        need,
        lambda: (2 * h * (x - target)).reshape(len(x), x[:1].numel()).mean(1),
        lambda: 2 * each(g, x) * h,
    )


# Inner steps.


@raw
def inner_scale(g: list[Tensor], rate: list[Tensor], scale: float) -> list[Tensor]:
    return [scale * (rate[i] if rate else 1) * x for i, x in enumerate(g)]


@raw
def inner_update(
    p: list[Tensor], g: list[Tensor], rate: list[Tensor], scale: float
) -> list[Tensor]:
    return [x + y for x, y in zip(p, inner_scale(g, rate, scale), strict=True)]


@raw
def inner_rate_grad(
    h: list[Tensor], g: list[Tensor], scalar: list[bool], scale: float
) -> list[Tensor]:
    products = [scale * x * y for x, y in zip(h, g, strict=True)]
    return [x.sum() if one else x.sum(0) for x, one in zip(products, scalar, strict=True)]


@raw
def inner_momentum(
    p: list[Tensor],
    g: list[Tensor],
    v: list[Tensor],
    rate: list[Tensor],
    scale: float,
    momentum: float,
    nesterov: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    new = [momentum * x + y for x, y in zip(v, g, strict=True)]
    step = [y + momentum * x for x, y in zip(new, g, strict=True)] if nesterov else new
    return inner_update(p, step, rate, scale), new
