"""Optimizers of torch.optim with options of every kind, and a problem that tells them apart."""

from __future__ import annotations

from typing import Any

import torch
from problems import tensor
from torch import Tensor

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd decay maximize": (torch.optim.SGD, {"lr": 0.01, "weight_decay": 0.2, "maximize": True}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "eps": 1e-3}),
    "adam decay": (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.2, "betas": (0.7, 0.8)}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.6)}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
    "adamw amsgrad": (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True, "maximize": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.05, "weight_decay": 0.1}),
    "rmsprop centered": (torch.optim.RMSprop, {"lr": 0.05, "centered": True, "momentum": 0.7}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.2, "lr_decay": 0.1, "weight_decay": 0.1}),
    "adagrad begun": (torch.optim.Adagrad, {"lr": 0.2, "initial_accumulator_value": 0.5}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "weight_decay": 0.1, "eps": 1e-3}),
    "adamax": (torch.optim.Adamax, {"lr": 0.1, "weight_decay": 0.1}),
    "asgd": (torch.optim.ASGD, {"lr": 0.1, "lambd": 0.05, "t0": 2, "weight_decay": 0.1}),
    "rprop": (torch.optim.Rprop, {"lr": 0.05}),
}


def loss_of(params: list[Tensor]) -> Tensor:
    """Curved, with another curvature in every direction, and terms that couple the parameters."""
    a, b = params
    x = tensor(5, 3, seed=7)
    return ((x @ a).tanh() * b).sum(1).exp().mean() + (a**4).sum() / 8 + (b.sin() ** 2).sum()


def initial() -> list[Tensor]:
    return [tensor(3, 4, seed=1).requires_grad_(), tensor(4, seed=2).requires_grad_()]


def stepped(opt: torch.optim.Optimizer, params: list[Tensor], steps: int) -> None:
    for _ in range(steps):
        opt.zero_grad()
        loss_of(params).backward()
        opt.step()
