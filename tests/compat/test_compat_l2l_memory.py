"""Learners are freed as soon as nothing refers to them, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmaml.compat.learn2learn as l2l
from fastmaml.measure.profile import LiveMemory


@pytest.fixture(autouse=True)
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def model() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(conv, nn.Linear(12, 2))


ALGORITHMS: dict[str, Any] = {
    "MAML": lambda: l2l.algorithms.MAML(model(), 0.1),
    "MAML first order": lambda: l2l.algorithms.MAML(model(), 0.1, first_order=True),
    "MetaSGD": lambda: l2l.algorithms.MetaSGD(model(), 0.1),
    "GBML": lambda: l2l.algorithms.GBML(
        model(), l2l.optim.MetaCurvatureTransform, 0.1, adapt_transform=True, allow_unused=True
    ),
    "LSTM": lambda: l2l.algorithms.MAML(nn.LSTM(4, 3), 0.1),
}


def loss(learner: nn.Module, x: Tensor) -> Tensor:
    out = learner(x)
    return (out[0] if isinstance(out, tuple) else out).square().mean()


def live_tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def iteration(meta: nn.Module, opt: torch.optim.Optimizer, x: Tensor) -> list[Any]:
    """One of a script's iterations, and weak references to what should be gone after it."""
    opt.zero_grad()
    learner = meta.clone()
    for _ in range(2):
        learner.adapt(loss(learner, x))
    loss(learner, x).backward()
    opt.step()
    return [weakref.ref(m) for m in learner.modules()] + [
        weakref.ref(p) for p in learner.parameters()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_hundred_iterations_do_not_grow(algorithm: str) -> None:
    meta = ALGORITHMS[algorithm]()
    x = torch.randn(5, 1, 4) if algorithm == "LSTM" else torch.randn(5, 1, 4, 4)
    opt = torch.optim.SGD(meta.parameters(), 1e-3)
    for _ in range(3):  # the optimizer's own, and what torch makes at first
        iteration(meta, opt, x)
    before = live_tensors()
    for _ in range(200):
        gone = iteration(meta, opt, x)
    assert all(ref() is None for ref in gone)
    assert live_tensors() == before
    with LiveMemory() as memory:
        iteration(meta, opt, x)
        after_one = memory.live_bytes
        for _ in range(4):
            iteration(meta, opt, x)
    assert memory.live_bytes == after_one


def test_a_failing_adapt_keeps_nothing() -> None:
    meta = l2l.algorithms.MAML(model(), 0.1)
    x = torch.randn(5, 1, 4, 4)

    def attempt() -> list[Any]:
        learner = meta.clone()
        loss = learner.module[0](x).square().mean()
        failed = False
        try:  # pytest.raises would keep the frame, and with it the learner
            learner.adapt(loss)
        except RuntimeError:
            failed = True
        assert failed
        return [weakref.ref(learner)]

    attempt()
    before = live_tensors()
    for _ in range(20):
        gone = attempt()
    assert gone[0]() is None
    assert live_tensors() == before


def test_a_learnable_optimizer_forgets_all_steps_but_the_last() -> None:
    layer = nn.Linear(3, 1)
    metaopt = l2l.optim.LearnableOptimizer(layer, l2l.optim.ModuleTransform(nn.Linear), lr=0.1)
    x = torch.randn(4, 3)

    def step() -> None:
        metaopt.zero_grad()
        layer(x).square().mean().backward()
        metaopt.step()

    for _ in range(3):
        step()
    before = live_tensors()
    for _ in range(50):
        step()
    assert live_tensors() == before
