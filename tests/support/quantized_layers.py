"""A small network under low-rank adapters whose frozen layers are quantized, and the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from hand_loop import Parameters, hand_loop
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastmaml as fm

WIDTH, CLASSES, LR, STEPS = 64, 3, 0.5, 2


class Adapted(nn.Module):
    """A frozen linear layer plus a low-rank one, as peft has it, in float32."""

    def __init__(self, base: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(0.3 * torch.randn(rank, WIDTH))
        self.lora_b = nn.Parameter(0.3 * torch.randn(WIDTH, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = x.to(self.lora_a.dtype) @ self.lora_a.T @ self.lora_b.T
        return self.base(x) + low.to(x.dtype)


class RunAgain(nn.Module):
    """A layer inside of `torch.utils.checkpoint`."""

    def __init__(self, layer: Adapted) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.layer, x, use_reentrant=False)
        return found


def network(quantize: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Two such layers, quantized by the function before they get adapters, and a head."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).to(dtype)
    base.requires_grad_(False)
    first, second = quantize(base)
    head = nn.Linear(WIDTH, CLASSES).to(dtype)
    return nn.Sequential(Adapted(first), nn.Tanh(), Adapted(second), nn.Tanh(), head)


def run_again(model: Any) -> nn.Module:
    """The same layers, each of which runs again where its derivative is wanted."""
    first, act, second, _, head = model
    return nn.Sequential(RunAgain(first), act, RunAgain(second), act, head)


def dense(model: nn.Module, weight_of: Callable[[Any], Tensor]) -> nn.Module:
    """The same in float64, with the dense weights of its quantized layers."""
    found: Any = copy.deepcopy(model)
    for adapted in (found[0], found[2]):
        own = adapted.base
        adapted.base = nn.Linear(WIDTH, WIDTH, bias=own.bias is not None)
        adapted.base.weight = nn.Parameter(weight_of(own).detach().clone(), requires_grad=False)
        if own.bias is not None:
            adapted.base.bias = nn.Parameter(own.bias.detach().clone(), requires_grad=False)
    return found.double()


def episodes(dtype: torch.dtype, tasks: int = 3) -> fm.Episodes:
    generator = torch.Generator().manual_seed(1)

    def batch() -> fm.Batch:
        inputs = torch.randn(tasks, 6, WIDTH, generator=generator).to(dtype)
        return fm.Batch(inputs, torch.randint(CLASSES, (tasks, 6), generator=generator))

    return fm.Episodes(batch(), batch())


def by_hand(model: nn.Module, batch: fm.Episodes, first_order: bool = False) -> Parameters:
    dtype = list(model.parameters())[-1].dtype  # the head's: adapters are in float32
    return hand_loop(model, loss, batch.to(dtype), LR, STEPS, first_order)[1]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def learned(model: nn.Module, **settings: Any) -> fm.MAML:
    return fm.MAML(model, lr=LR, steps=STEPS, loss=loss, **settings)


def meta_gradient(maml: fm.MAML, batch: fm.Episodes) -> Parameters:
    maml.zero_grad()
    maml(batch).loss.backward()
    named = maml.module.named_parameters()
    return {n: p.grad for n, p in named if p.requires_grad and p.grad is not None}


def error(found: Parameters, expected: Parameters) -> float:
    """Of the whole gradient, relative to it."""
    assert found.keys() == expected.keys()
    pairs = [(found[n].double(), expected[n].double()) for n in expected]
    off = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return float(off / torch.stack([b.norm() for _, b in pairs]).norm())
