"""What does it cost to adapt: all tasks of a meta-batch (`evaluate`), or one (`adapt_to`)?

Losses and adapted parameters are compared in float64 with the loop written by hand before anything
is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import fastmaml as fm
from benchmarks.suites.bench_meta_step import WORKLOADS
from benchmarks.support.exactness import EXACT
from benchmarks.support.reference import adapted_by_hand, batch_loss, problem_of, relative
from benchmarks.support.workloads import Workload


def rows(device: str, quick: bool) -> list[dict[str, Any]]:
    return [
        {"workload": work, "verb": verb, "steps": steps}
        for work in WORKLOADS
        for verb in ("evaluate", "adapt_to")
        for steps in ((3,) if quick else (1, 5, 10))
    ]


def ready(work: Workload, device: str, dtype: str) -> tuple[Any, fm.MAML, fm.Batch]:
    p = problem_of(work, device, dtype)
    maml = fm.MAML(p.model, p.lr, steps=p.steps, loss=p.loss)
    return p, maml, p.episodes.support.map(lambda x: x[0])


def difference(work: Workload, verb: str, device: str) -> float:
    """From the loop, in float64."""
    p, maml, support = ready(work, device, "float64")
    tasks = list(p.episodes)
    if verb == "adapt_to":
        learner = maml.adapt_to(support)
        by_hand = adapted_by_hand(p, tasks[0], fm.gradients.FirstOrder())
        return relative(dict(learner.named_parameters()), by_hand)
    adapted = [adapted_by_hand(p, task, fm.gradients.FirstOrder()) for task in tasks]
    with torch.no_grad():
        pairs = zip(adapted, tasks, strict=True)
        losses = torch.stack([batch_loss(p.model, p.loss, w, task.query) for w, task in pairs])
    return float(((maml.evaluate(p.episodes).losses - losses) / losses).abs().max())


def test_adaptation(
    workload: str, verb: str, steps: int, device: str, timed: Callable[..., None]
) -> None:
    work = replace(WORKLOADS[workload], steps=steps)
    error = difference(work, verb, device)
    assert error <= EXACT
    p, maml, support = ready(work, device, "float32")
    run = (
        (lambda: maml.adapt_to(support))
        if verb == "adapt_to"
        else (lambda: maml.evaluate(p.episodes))
    )
    run()
    timed(run, title=work.title, tasks=1 if verb == "adapt_to" else work.tasks, difference=error)
