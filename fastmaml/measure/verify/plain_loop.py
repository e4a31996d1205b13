"""MAML as one would write it by hand, with the rule, scope and loss of a `MAML`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmaml.engine.model.buffers import forget_running_statistics
from fastmaml.engine.model.inventory import take_inventory
from fastmaml.engine.routing.called_by_hand import called, written_out
from fastmaml.engine.routing.mode import without_cudnn
from fastmaml.engine.step.forward import Loss, call
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.maml import MAML
from fastmaml.maml.plan import meta_of
from fastmaml.measure.verify.runs import Run, take_gradients
from fastmaml.rules.base import Tensors


def of_the_plain_loop(maml: MAML, episodes: Episodes) -> Run:
    """MAML one task at a time in plain PyTorch; it sets the gradients of `maml`."""
    method = maml.gradient
    known = method is None or method.exact or method.one_graph
    if maml.head is not None or not known:
        what = method if maml.head is None else maml.head
        raise ValueError(f"there is no plain loop to compare {what} with: give reference=.")
    if maml.batch_norm == "batch":
        forget_running_statistics(maml.module)
    written_out(maml.module)
    losses = []
    # The fused kernels have no second derivative, and weight_norm's is wrong.
    with sdpa_kernel(SDPBackend.MATH), without_cudnn():
        for task in episodes:
            loss = _task_loss(maml, task)
            (loss / episodes.tasks).backward()
            losses.append(loss.detach())
    return Run(torch.stack(losses).mean(), take_gradients(maml))


def _task_loss(maml: MAML, task: Episodes) -> Tensor:
    """The query loss of one task after its inner steps."""
    rule, method = maml.rule, maml.gradient
    meta = meta_of(maml, take_inventory(maml.module))
    supports = [b.map(lambda x: x.squeeze(0)) for b in (task.support, *task.later)]
    query = task.query.map(lambda x: x.squeeze(0))
    moving = {n: p.unsqueeze(0) for n, p in meta.adapted.items()}  # rules take [tasks, *shape]
    state = rule.init(moving)
    for step in range(maml.steps):
        constant = method is not None and not method.differentiates(step, maml.steps)
        gradients = torch.autograd.grad(
            _batch_loss(maml.module, maml.loss, moving, supports[min(step, len(supports) - 1)]),
            list(moving.values()),
            create_graph=not constant,
            allow_unused=True,
            materialize_grads=True,
        )
        updates, state = rule.update(
            step, dict(zip(moving, gradients, strict=True)), state, moving, meta.rates
        )
        moving = {n: p + updates[n] for n, p in moving.items()}
    return _batch_loss(maml.module, maml.loss, moving, query)


def _batch_loss(model: nn.Module, loss: Loss | None, moving: Tensors, batch: Batch) -> Tensor:
    assert loss is not None  # `maml(episodes)`, which ran before, has seen to it
    own = {n: p.squeeze(0) for n, p in moving.items()}
    output = called(model, False, call, model, own, batch.inputs)
    return loss(output, batch.targets)
