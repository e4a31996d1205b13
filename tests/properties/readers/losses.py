"""Losses that read things, and their changes."""

from __future__ import annotations

import functools
import types

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from properties.readers.base import Made, Reader
from properties.readers.code import BOX, reset, set_k


def plain() -> Made:
    return F.mse_loss, []


def reads_global() -> Made:
    import properties.readers.code as code

    reset()
    return (lambda a, b: code.K * F.mse_loss(a, b)), [set_k]


def reads_object() -> Made:
    reset()
    return (lambda a, b: BOX.k * F.mse_loss(a, b)), [lambda v: setattr(BOX, "k", v)]


def settings() -> Made:
    loss = nn.SmoothL1Loss(beta=1.0)
    return loss, [lambda v: setattr(loss, "beta", v), lambda v: setattr(loss, "reduction", "sum")]


def weights() -> Made:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(2, dtype=torch.float64))
            self.plain = torch.ones(2, dtype=torch.float64)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return ((a - b).square() * self.weight * self.plain).mean()

    loss = Weighted()

    def full(v: float) -> Tensor:
        return torch.tensor([1.0, v], dtype=torch.float64)

    return loss, [
        lambda v: setattr(loss, "weight", full(v)),
        lambda v: loss.weight.copy_(full(v)),
        lambda v: setattr(loss, "plain", full(v)),
        lambda v: setattr(loss.weight, "data", full(v)),
    ]


def partial() -> Made:
    loss = functools.partial(F.huber_loss, delta=1.0)
    return loss, [lambda v: loss.keywords.__setitem__("delta", v)]


def bound() -> Made:
    holder = types.SimpleNamespace(k=1.0)
    loss = types.MethodType(lambda self, a, b: self.k * F.mse_loss(a, b), holder)
    return loss, [lambda v: setattr(holder, "k", v)]


def teacher() -> Made:
    net = nn.Linear(2, 2).double().requires_grad_(False)

    def swap(v: float) -> None:
        net.weight = nn.Parameter(net.weight * v, requires_grad=False)

    return (lambda a, b: F.mse_loss(a, net(b))), [swap, lambda v: net.bias.fill_(v)]


def class_state() -> Made:
    class Loss:
        k = 1.0

        def __call__(self, a: Tensor, b: Tensor) -> Tensor:
            return self.k * F.mse_loss(a, b)

    loss = Loss()
    return loss, [lambda v: setattr(Loss, "k", v), lambda v: setattr(loss, "k", v)]


LOSSES: dict[str, Reader] = {
    "plain": plain,
    "global": reads_global,
    "object": reads_object,
    "settings": settings,
    "weights": weights,
    "partial": partial,
    "bound": bound,
    "teacher": teacher,
    "class": class_state,
}
