"""Every raw op in plain PyTorch formulas: the kernels that the autograd functions are tested on.

They are registered with the schemas of csrc/bindings.cpp, as the native ones are: opaque, and
without derivatives. Nothing here is differentiated; each derivative is written out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmaml.ops._load import Kernels

BINDINGS = Path(__file__).parent.parent / "csrc" / "bindings.cpp"
LIBRARY = torch.library.Library("fastmaml_check", "DEF")
FUNCTIONS: dict[str, Callable[..., Any]] = {}


def raw(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


@functools.cache
def raw_kernels() -> Kernels:
    schemas = re.findall(r'm\.def\("((\w+)\(.*?)"\)', BINDINGS.read_text())
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


def only(need: int, *results: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    return tuple(r().clone() if need >> i & 1 else nothing() for i, r in enumerate(results))


def nothing() -> Tensor:
    return torch.empty(0)


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
    return VALUE[act](z), z if act in (3, 4, 6) else nothing()


@raw
def task_linear_dgrad(g: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("tno,toi->tni", g, w).contiguous()


@raw
def task_linear_wgrad(g: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    return torch.einsum("tno,tni->toi", g, x), g.sum(1) if bias else nothing()


# Convolutions, as products with the windows of the images: [tasks, examples, in * kernel, pixels].


def channels_last(x: Tensor) -> Tensor:
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


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


# Normalisations: x̂ = (x - mean) rstd over the dimensions `over`. Its derivative along h is
# rstd Q(h), with Q(h) = h - mean h - x̂ mean(x̂ h), which is symmetric.


def normal(x: Tensor, mean: Tensor, rstd: Tensor, over: Any) -> tuple[Tensor, Any, Any]:
    xhat = (x - mean) * rstd

    def average(v: Tensor) -> Tensor:
        return v.mean(over, keepdim=True)

    def project(v: Tensor) -> Tensor:
        return v - average(v) - xhat * average(xhat * v)

    def second(c: Tensor, h: Tensor) -> Tensor:
        """The gradient of <c, rstd Q(h)> by x."""
        a, b = average(c * xhat), average(h * xhat)
        both = average(c * h) - average(c) * average(h) - a * b
        return -rstd * rstd * (xhat * both + b * project(c) + a * project(h))

    return xhat, project, second


def norm_bwd(gz: Tensor, w: Any, xhat: Tensor, project: Any, rstd: Tensor, over: Any, need: int):
    return only(
        need,
        lambda: rstd * project(gz * w),
        lambda: (gz * xhat).sum(over),
        lambda: gz.sum(over),
    )


def norm_bwd2(hx, hw, hb, gz, w, rstd, over, parts, out, need):
    """`out` takes what the normalisation gives to what the op gives."""
    xhat, project, second = parts
    hx = torch.zeros_like(xhat) if hx is None else hx
    move = rstd * project(hx)
    return only(
        need,
        lambda: out(move * w + xhat * hw + hb),
        lambda: second(gz * w, hx) + rstd * project(gz * hw),
        lambda: (gz * move).sum(over),
    )


PIXELS = (1, 3, 4)
ROWS = (1,)


def per_channel(v: Tensor | None, default: float) -> Any:
    return default if v is None else v[:, None, :, None, None]


def per_feature(v: Tensor | None, default: float) -> Any:
    return default if v is None else v[:, None]


def into_windows(x: Tensor) -> Tensor:
    """[..., height, width] as [..., height / 2, width / 2, 4]."""
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    x = x[..., : 2 * h, : 2 * w].unflatten(-2, (h, 2)).unflatten(-1, (w, 2))
    return x.transpose(-3, -2).flatten(-2)


def pick(x: Tensor, index: Tensor, pool: bool) -> Tensor:
    """What comes out of x, by the index."""
    if index.numel() == 0 and not pool:
        return x
    there = index < 4
    if pool:
        x = into_windows(x).gather(-1, torch.where(there, index, 0).long()[..., None])[..., 0]
    return torch.where(there, x, 0)


def put(g: Tensor, index: Tensor, pool: bool, shape: Any) -> Tensor:
    """The transpose of `pick`."""
    if index.numel() == 0 and not pool:
        return g
    g = torch.where(index < 4, g, 0)
    if not pool:
        return g
    chosen = torch.arange(4, device=g.device) == index[..., None]
    x = torch.where(chosen, g[..., None], 0).unflatten(-1, (2, 2)).transpose(-3, -2)
    x = x.flatten(-2).flatten(-3, -2)
    return F.pad(x, (0, shape[-1] - x.shape[-1], 0, shape[-2] - x.shape[-2]))


@raw
def task_batch_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, eps: float, relu: bool, pool: bool
) -> tuple[Tensor, ...]:
    mean = x.mean(PIXELS)
    centred = x - per_channel(mean, 0)
    rstd = (centred.square().mean(PIXELS) + eps).rsqrt()
    z = centred * per_channel(rstd, 1)
    z = z * per_channel(w, 1) + per_channel(b, 0)
    index = torch.zeros_like(z, dtype=torch.uint8)
    if pool:
        z, index = into_windows(z).max(-1)
        index = index.to(torch.uint8)
    if relu:
        index = torch.where(z <= 0, 4, index).to(torch.uint8)
        z = torch.where(z <= 0, 0, z)
    if not relu and not pool:
        index = torch.empty(0, dtype=torch.uint8)
    return channels_last(z), mean, rstd, index


@raw
def task_batch_norm_bwd(g, x, w, mean, rstd, index, relu, pool, need):
    mean, rstd = per_channel(mean, 0), per_channel(rstd, 1)
    xhat, project, _ = normal(x, mean, rstd, PIXELS)
    gz = put(g, index, pool, x.shape)
    return norm_bwd(gz, per_channel(w, 1), xhat, project, rstd, PIXELS, need)


@raw
def task_batch_norm_bwd2(hx, hw, hb, g, x, w, mean, rstd, index, relu, pool, need):
    mean, rstd = per_channel(mean, 0), per_channel(rstd, 1)
    parts = normal(x, mean, rstd, PIXELS)
    gz = put(g, index, pool, x.shape)
    return norm_bwd2(
        hx, per_channel(hw, 0), per_channel(hb, 0), gz, per_channel(w, 1), rstd, PIXELS, parts,
        lambda z: pick(z, index, pool), need,
    )  # fmt: skip


@raw
def task_layer_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    mean = x.mean(2)
    centred = x - mean[..., None]
    rstd = (centred.square().mean(2) + eps).rsqrt()
    return centred * rstd[..., None] * per_feature(w, 1) + per_feature(b, 0), mean, rstd


@raw
def task_layer_norm_bwd(g, x, w, mean, rstd, need):
    xhat, project, _ = normal(x, mean[..., None], rstd[..., None], (2,))
    return norm_bwd(g, per_feature(w, 1), xhat, project, rstd[..., None], ROWS, need)


@raw
def task_layer_norm_bwd2(hx, hw, hb, g, x, w, mean, rstd, need):
    parts = normal(x, mean[..., None], rstd[..., None], (2,))
    return norm_bwd2(
        hx, per_feature(hw, 0), per_feature(hb, 0), g, per_feature(w, 1), rstd[..., None], ROWS,
        parts, lambda z: z, need,
    )  # fmt: skip


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
