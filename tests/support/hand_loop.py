"""MAML as one would write it by hand in plain PyTorch: one task at a time, nothing clever.

The oracle of the tests: it uses `torch.func.functional_call` and `torch.autograd.grad`, and
nothing of fastmaml but the `Episodes` that it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmaml.episodes.batch import Batch, Episodes

Loss = Callable[[Any, Any], Tensor]
Parameters = dict[str, Tensor]


def hand_loop(
    model: nn.Module,
    loss: Loss,
    episodes: Episodes,
    lr: float,
    steps: int,
    first_order: bool = False,
    query_loss: Loss | None = None,
) -> tuple[Tensor, Parameters]:
    """The mean query loss after `steps` steps of SGD, and its gradient by the model's parameters.

    Parameters with ``requires_grad=False`` are constants; one that the query loss does not reach
    has the meta-gradient zero. `query_loss` None is `loss`.
    Neither the model's buffers nor its ``.grad`` change.
    """
    theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = []
    for task in episodes:
        adapted = theta
        for step in range(steps):
            support_loss = batch_loss(model, loss, adapted, task.support_of(step))
            adapted = sgd_step(adapted, support_loss, lr, first_order)
        losses.append(batch_loss(model, query_loss or loss, adapted, task.query))
    mean_loss = torch.stack(losses).mean()
    grads = torch.autograd.grad(
        mean_loss, list(theta.values()), allow_unused=True, materialize_grads=True
    )
    return mean_loss.detach(), dict(zip(theta, grads, strict=True))


def sgd_step(parameters: Parameters, loss: Tensor, lr: float, first_order: bool) -> Parameters:
    """θ - lr·∇loss(θ); in first order the gradient is a constant."""
    grads = torch.autograd.grad(
        loss,
        list(parameters.values()),
        create_graph=not first_order,
        allow_unused=True,
        materialize_grads=True,
    )
    return {name: p - lr * g for (name, p), g in zip(parameters.items(), grads, strict=True)}


def batch_loss(model: nn.Module, loss: Loss, parameters: Parameters, batch: Batch) -> Tensor:
    """The loss of one task's batch, whose tensors still have their leading dimension of size 1."""
    batch = batch.map(lambda x: x.squeeze(0))
    inputs = batch.inputs
    kwargs = inputs if isinstance(inputs, dict) else {}
    args = () if kwargs else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    # BatchNorm writes its running statistics: give it copies.
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return loss(functional_call(model, {**parameters, **buffers}, args, kwargs), batch.targets)
