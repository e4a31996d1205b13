"""The raw ops of the normalisations in plain PyTorch formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from raw_registry import channels_last, only, raw
from torch import Tensor

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
