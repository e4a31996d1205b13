"""A network, its data and the loop by hand that a per-task function is held against."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

TASKS = 3
PATHS: dict[str, dict[str, Any]] = {
    "eager": {"executor": "eager", "backend": "reference"},
    "one by one": {"executor": "eager", "tasks_chunk": 1},
    "captured": {"executor": "captured", "backend": "reference"},
    "native": {},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Linear(2, 2)]
    model = nn.Sequential(*layers[:3])
    model.register_module("unused", layers[3])
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    return model.double()


def data(support: int = 5, query: int = 4, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TASKS, support + query, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (TASKS, support + query), generator=generator)
    return x[:, :support], y[:, :support], x[:, support:], y[:, support:]


def by_hand(model: nn.Module, given: Any, lr: float, steps: int, first_order: bool) -> list[Tensor]:
    losses = []
    for xs, ys, xq, yq in zip(*given, strict=True):
        theta: dict[str, Tensor] = dict(model.named_parameters())
        for k in range(steps):
            loss = F.cross_entropy(functional_call(model, theta, (xs,)), ys) * (k + 1)
            names = [n for n in theta if "unused" not in n]
            found = torch.autograd.grad(
                loss, [theta[n] for n in names], create_graph=not first_order
            )
            theta |= {n: theta[n] - lr * g for n, g in zip(names, found, strict=True)}
        losses.append(F.cross_entropy(functional_call(model, theta, (xq,)), yq))
    return losses


def gradients(model: nn.Module) -> list[Tensor | None]:
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    return found


def check(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert any(b is not None and bool(b.any()) for b in expected)
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            assert a is not None
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
