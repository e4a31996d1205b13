"""The meta-gradient of one iteration: over several meta-batches, and over several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.engine.model.buffers import smooth
from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.training.ranks import Ranks


def meta_gradient(
    maml: MAML, batches: Sequence[Episodes], ranks: Ranks, **how: Any
) -> dict[str, float | None]:
    """Set ``.grad`` to that of the mean loss of all tasks; the loss and accuracy of all tasks.

    A meta-batch that is divided among processes or calls counts by its tasks, so that the numbers
    are those of one meta-batch with all of them in one process.

    Args:
        maml: whose.
        batches: whole ones, the same in every process.
        ranks: the processes.
        how: arguments of ``maml(episodes)``.

    Raises:
        ValueError, NonFiniteLoss: as ``maml(episodes)``; in every process.
    """
    total = sum(batch.tasks for batch in batches)
    loss, right, known = 0.0, 0.0, 0
    maml.zero_grad()
    for batch in batches:
        with _same_buffers(maml, ranks), ranks.together(), ranks.part(batch) as own:
            share = own.tasks / total
            out = maml(own, **how)
            (out.loss if share == 1 else out.loss * share).backward()
            loss += out.loss.item() * share
            if out.accuracies is not None and out.accuracy is not None:
                count = int((~out.accuracies.isnan()).sum())
                right, known = right + out.accuracy.item() * count, known + count
    _add_gradients(maml, ranks)
    if ranks.several:
        figures = torch.tensor([loss, right, known], dtype=torch.float64)
        figures = torch.stack(ranks.gathered(figures)).sum(0)
        loss, right, known = figures[0].item(), figures[1].item(), int(figures[2])
    return {"loss": loss, "accuracy": right / known if known else None}


def _add_gradients(maml: MAML, ranks: Ranks) -> None:
    """What no process has a gradient of stays without one; what some have, all get."""
    if not ranks.several:
        return
    parameters = [p for p in maml.parameters() if p.requires_grad]
    there = ranks.highest(*(p.grad is not None for p in parameters))
    gradients = []
    for p, needed in zip(parameters, there, strict=True):
        if needed:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
    ranks.add(gradients)


@contextmanager
def _same_buffers(module: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Running statistics that changed inside become the mean over processes, as over tasks."""
    if not ranks.several:
        yield
        return
    buffers: list[Tensor] = [x for x in module.buffers() if smooth(x)]
    before = [x._version for x in buffers]
    yield
    changed = [x._version != then for x, then in zip(buffers, before, strict=True)]
    if not buffers:
        return
    moved = [x for x, any_ in zip(buffers, ranks.highest(*changed), strict=True) if any_]
    with torch.no_grad():
        for x in moved:
            x.div_(ranks.world)
        ranks.add(moved)
