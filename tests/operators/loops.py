"""The plain loop over tasks, and central differences: what every other way is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmaml.episodes.batch import Batch, Episodes

from .problem import STEP_SIZE, STEPS, OperatorModel, loss

Parameters = dict[str, Tensor]
Scope = Callable[[str], bool]


@dataclass(frozen=True)
class Numbers:
    """A mean query loss and its gradient, None where it has none."""

    loss: Tensor
    gradient: dict[str, Tensor | None]

    def finite(self) -> bool:
        return all(bool(x.isfinite().all()) for x in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [self.loss, *(g for g in self.gradient.values() if g is not None)]

    def distance(self, other: Numbers) -> float:
        """The largest difference, in terms of the largest element of this gradient or loss."""
        apart = [float((self.loss - other.loss).abs())]
        scale = max(float(g.abs().max()) for g in self._tensors() if g.numel())
        for name, g in self.gradient.items():
            h = other.gradient[name]
            if g is not None or h is not None:
                g = torch.zeros_like(h) if g is None else g  # type: ignore[arg-type]
                h = torch.zeros_like(g) if h is None else h
                apart.append(float((g - h).abs().max()) if g.numel() else 0.0)
        return max(a if a == a else float("inf") for a in apart) / max(scale, 1e-300)


def plain(
    model: nn.Module, scope: Scope, tasks: Episodes, lr: float, second_order: bool
) -> Numbers:
    """One task at a time, `torch.autograd.grad` and `functional_call`."""
    theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    value = _meta_loss(model, theta, scope, tasks, lr, second_order)
    found = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    return Numbers(value.detach(), dict(zip(theta, found, strict=True)))


def slope(
    model: nn.Module, scope: Scope, tasks: Episodes, lr: float, along: Parameters, width: float
) -> float:
    """The meta-loss's derivative in a direction, by central differences: first derivatives only."""

    def at(distance: float) -> float:
        theta = {
            n: (p.detach() + distance * along[n]).requires_grad_()
            for n, p in model.named_parameters()
        }
        return float(_meta_loss(model, theta, scope, tasks, lr, second_order=False).detach())

    near = (at(width) - at(-width)) / (2 * width)
    far = (at(2 * width) - at(-2 * width)) / (4 * width)
    return (4 * near - far) / 3


def step_size(model: OperatorModel, scope: Scope, tasks: Episodes) -> float:
    """A learning rate that moves parameters by a few per cent."""
    theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    adapted = {n: p for n, p in theta.items() if scope(n)}
    gradients = torch.autograd.grad(
        _task_loss(model, theta, tasks[0].support), list(adapted.values()), allow_unused=True
    )
    rates = [
        STEP_SIZE * model.reach * max(float(p.detach().abs().max()), 1e-3) / float(g.abs().max())
        for p, g in zip(adapted.values(), gradients, strict=True)
        if g is not None and g.numel() and float(g.abs().max()) > 1e-9
    ]
    return min([*rates, 1.0])


def _meta_loss(
    model: nn.Module, theta: Parameters, scope: Scope, tasks: Episodes, lr: float,
    second_order: bool,
) -> Tensor:  # fmt: skip
    losses = []
    for task in tasks:
        moved = dict(theta)
        for _ in range(STEPS):
            names = [n for n in moved if scope(n)]
            gradients = torch.autograd.grad(
                _task_loss(model, moved, task.support), [moved[n] for n in names],
                create_graph=second_order, allow_unused=True,
            )  # fmt: skip
            for n, g in zip(names, gradients, strict=True):
                moved[n] = moved[n] if g is None else moved[n] - lr * g
        losses.append(_task_loss(model, moved, task.query))
    return torch.stack(losses).mean()


def _task_loss(model: nn.Module, parameters: Parameters, batch: Batch) -> Tensor:
    batch = batch.map(lambda x: x.squeeze(0))
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    output = functional_call(model, {**parameters, **buffers}, (batch.inputs,))
    return loss(output, batch.targets)
