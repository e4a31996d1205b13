"""Loops over tasks: one written by hand, learn2learn's, higher's and TorchOpt's.

Each task's graph is freed before the next task's is built, as the libraries' users do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from hand_loop import hand_loop
from torch import Tensor

from benchmarks.contestants import LOOP, LOOP_FIRST, Built, Setup
from benchmarks.contestants.torch_problem import Problem, built, problem

Gradient = dict[str, Tensor]


def build(name: str, setup: Setup) -> Built:
    p = problem(setup)
    if name in (LOOP, LOOP_FIRST):
        return built(by_hand(p, first_order=name == LOOP_FIRST), setup)
    library = importlib.import_module(name.lower())
    style = name.rpartition(".")[2]
    by = {"learn2learn": by_learn2learn, "higher": by_higher, "TorchOpt": by_torchopt}[style]
    run = by(p, library)
    if name.startswith("fastmaml."):
        return built(run, setup)
    # higher does not say its version; learn2learn is no distribution, as only a part of it is there
    version = importlib.metadata.version(name) if name == "higher" else library.__version__
    return built(run, setup, **{name: version})


def by_hand(p: Problem, first_order: bool) -> Callable[[], Gradient]:
    def run() -> Gradient:
        total: Gradient = {}
        for task in p.episodes:
            _, found = hand_loop(p.model, p.loss, task, p.lr, p.steps, first_order)
            total = {n: g + total[n] for n, g in found.items()} if total else found
        return {n: g / p.episodes.tasks for n, g in total.items()}

    return run


def by_learn2learn(p: Problem, library: Any) -> Callable[[], Gradient]:
    maml = library.algorithms.MAML(p.model, p.lr)

    def run() -> Gradient:
        p.model.zero_grad()
        for task in p.episodes:
            learner = maml.clone()
            for _ in range(p.steps):
                learner.adapt(loss_of(p, learner, task.support))
            (loss_of(p, learner, task.query) / p.episodes.tasks).backward()
        return accumulated(p)

    return run


def by_higher(p: Problem, library: Any) -> Callable[[], Gradient]:
    sgd = torch.optim.SGD(p.model.parameters(), p.lr)

    def run() -> Gradient:
        p.model.zero_grad()
        for task in p.episodes:
            # Without copy_initial_weights=False nothing arrives at the model's own parameters.
            context = library.innerloop_ctx(p.model, sgd, copy_initial_weights=False)
            with context as (learner, optimizer):
                for _ in range(p.steps):
                    optimizer.step(loss_of(p, learner, task.support))
                (loss_of(p, learner, task.query) / p.episodes.tasks).backward()
        return accumulated(p)

    return run


def by_torchopt(p: Problem, library: Any) -> Callable[[], Gradient]:
    """Its differentiable SGD moves the model itself, which is put back after every task."""
    parameters = dict(p.model.named_parameters())
    sgd = library.MetaSGD(p.model, lr=p.lr)
    start = library.extract_state_dict(p.model), library.extract_state_dict(sgd)

    def run() -> Gradient:
        for w in parameters.values():
            w.grad = None
        for task in p.episodes:
            for _ in range(p.steps):
                sgd.step(loss_of(p, p.model, task.support))
            (loss_of(p, p.model, task.query) / p.episodes.tasks).backward()
            for what, state in zip((p.model, sgd), start, strict=True):
                library.recover_state_dict(what, state)
        return {n: w.grad for n, w in parameters.items() if w.grad is not None}

    return run


def loss_of(p: Problem, learner: Callable[[Any], Any], batch: Any) -> Tensor:
    """Of a batch of one task, whose tensors still have their leading dimension."""
    return p.loss(learner(batch.inputs[0]), batch.targets[0])


def accumulated(p: Problem) -> Gradient:
    return {n: w.grad for n, w in p.model.named_parameters() if w.grad is not None}
