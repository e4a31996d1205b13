"""fastmaml, as its users call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import fastmaml as fm
from benchmarks.contestants import Built, Setup
from benchmarks.contestants.torch_problem import Problem, built, problem

SETTINGS: dict[str, dict[str, Any]] = {
    "fastmaml": {},
    "fastmaml per_task": {},
    "fastmaml captured, reference ops": {"executor": "captured", "backend": "reference"},
    "fastmaml eager, reference ops": {"executor": "eager", "backend": "reference"},
    "fastmaml, cuda kernels": {"executor": "captured", "backend": "cuda"},
    "fastmaml compiled": {"executor": "compiled"},
    "fastmaml, first order": {"first_order": True},
}


def task_of(p: Problem) -> Callable[..., Tensor]:
    """What somebody who comes from learn2learn has written for one task."""

    def task(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(p.steps):
            learner.adapt(p.loss(learner(support.inputs), support.targets))
        return p.loss(learner(query.inputs), query.targets)

    return task


def build(name: str, setup: Setup) -> Built:
    p = problem(setup)
    maml = fm.MAML(p.model, p.lr, steps=p.steps, loss=p.loss, **SETTINGS[name])
    parameters = dict(p.model.named_parameters())
    step = maml.per_task(task_of(p)) if "per_task" in name else maml

    def run() -> dict[str, Tensor]:
        maml.zero_grad()
        step(p.episodes).loss.backward()
        return {n: w.grad for n, w in parameters.items() if w.grad is not None}

    return built(run, setup, plain=False, fastmaml=fm.__version__)
