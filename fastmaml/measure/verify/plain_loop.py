"""The inner loop as one would write it by hand, with the rule, scope and loss of a `MAML`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmaml.engine.model.inventory import take_inventory
from fastmaml.engine.routing.called_by_hand import called
from fastmaml.engine.step.forward import call
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.maml import MAML
from fastmaml.maml.plan import meta_of
from fastmaml.models import at_inner_step
from fastmaml.rules.base import Tensors


def task_loss(maml: MAML, task: Episodes) -> Tensor:
    """The query loss of one task after its inner steps."""
    rule, method = maml.rule, maml.gradient
    meta = meta_of(maml, take_inventory(maml.module))
    supports = [b.map(lambda x: x.squeeze(0)) for b in (task.support, *task.later)]
    query = task.query.map(lambda x: x.squeeze(0))
    moving = {n: _start(p).unsqueeze(0) for n, p in meta.adapted.items()}  # [tasks, *shape]
    state = rule.init(moving)
    for step in range(maml.steps):
        constant = method is not None and not method.differentiates(step, maml.steps)
        gradients = torch.autograd.grad(
            _batch_loss(maml, step, False, moving, supports[min(step, len(supports) - 1)]),
            list(moving.values()),
            create_graph=not constant,
            allow_unused=True,
            materialize_grads=True,
        )
        updates, state = rule.update(
            step, dict(zip(moving, gradients, strict=True)), state, moving, meta.rates
        )
        moving = {n: p + updates[n] for n, p in moving.items()}
    return _batch_loss(maml, maml.steps, True, moving, query)


def _start(p: Tensor) -> Tensor:
    """θ, or where a frozen parameter begins anew."""
    return p if p.requires_grad else p.detach().requires_grad_()


def _batch_loss(maml: MAML, step: int, query: bool, moving: Tensors, batch: Batch) -> Tensor:
    loss = maml.query_loss if query and maml.query_loss is not None else maml.loss
    assert loss is not None  # `maml(episodes)`, which ran before, has seen to it
    own, model = {n: p.squeeze(0) for n, p in moving.items()}, maml.module
    with at_inner_step(model, max(step - 1, 0) if query else step):
        output = called(model, False, call, model, own, batch.inputs)
    return loss(output, batch.targets)
