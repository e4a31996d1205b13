"""Evaluation: recorded equals eager equals a loop by hand, on every problem of the contract."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from outcomes import require
from problems import PROBLEMS, Problem, tensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import fastmaml as fm

STEPS = 2


def curve(maml: fm.MAML, episodes: fm.Episodes) -> list[fm.MetaOutput]:
    """On the same dropout masks whenever it is called."""
    torch.manual_seed(3)
    return maml.evaluate_each_step(episodes, STEPS)


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        pairs = zip(
            tree_leaves((one.losses, one.outputs)),
            tree_leaves((other.losses, other.outputs)),
            strict=True,
        )
        for x, y in pairs:
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_recorded_equals_eager(problem: Problem, chunk: int | None) -> None:
    rule = fm.rules.MetaSGD(0.1)
    expected = curve(problem.maml(rule, executor="eager", tasks_chunk=chunk), problem.episodes)
    for options, tolerance in (({"backend": "reference"}, 0.0), ({}, 1e-11)):
        maml = problem.maml(rule, tasks_chunk=chunk, **options)
        for _ in range(2):  # recorded, then replayed
            found = curve(maml, problem.episodes)
            assert_same(found, expected, tolerance)
        assert not any(x.requires_grad for out in found for x in tree_leaves(out.outputs))


@pytest.mark.parametrize("executor", ["eager", "captured"])
def test_equals_adaptation_by_hand(executor: Any) -> None:
    model, inputs, targets = nn.Linear(3, 2).double(), tensor(4, 5, 3), tensor(4, 5, 2, seed=1)
    maml = fm.MAML(model, 0.3, steps=STEPS, loss=F.mse_loss, executor=executor)
    batch = fm.Batch(inputs, targets)
    found = maml.evaluate(fm.Episodes(batch, batch))
    for task in range(4):
        weight, bias = (p.detach().clone().requires_grad_() for p in model.parameters())
        for _ in range(STEPS):
            loss = F.mse_loss(F.linear(inputs[task], weight, bias), targets[task])
            gradients = torch.autograd.grad(loss, (weight, bias))
            weight, bias = (
                (p - 0.3 * g).detach().requires_grad_()
                for p, g in zip((weight, bias), gradients, strict=True)
            )
        expected = F.mse_loss(F.linear(inputs[task], weight, bias), targets[task])
        torch.testing.assert_close(found.losses[task], expected.detach(), rtol=1e-12, atol=0)


def test_evaluation_and_training_keep_recordings_of_their_own() -> None:
    """Evaluation on many shapes does not make training record again."""
    maml = fm.MAML(nn.Linear(3, 2).double(), 0.3, loss=F.mse_loss)

    def episodes(examples: int) -> fm.Episodes:
        batch = fm.Batch(tensor(4, examples, 3), tensor(4, examples, 2, seed=1))
        return fm.Episodes(batch, batch)

    maml(episodes(5))
    recorded = list(maml._execute._kept)  # type: ignore[attr-defined]
    for examples in range(1, 10):
        maml.evaluate(episodes(examples))
    assert list(maml._execute._kept) == recorded  # type: ignore[attr-defined]


def test_what_cannot_be_recorded_is_evaluated_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    batch = fm.Batch(tensor(2, 5, 3), tensor(2, 5, 2, seed=1))
    model = Branching(3, 2).double()
    found = []
    for executor in (None, "eager"):
        options: Any = {"executor": executor, "backend": "reference"}
        maml = fm.MAML(model, 0.3, loss=F.mse_loss, **options)
        with caplog.at_level(logging.WARNING, "fastmaml"):
            found.append(maml.evaluate(fm.Episodes(batch, batch)).losses)
    assert torch.equal(*found)
    assert "it runs eagerly" in caplog.text


def test_evaluation_runs_on_the_native_kernels() -> None:
    require("cpp")
    maml = fm.MAML(nn.Linear(3, 2).double(), 0.3, loss=F.mse_loss)
    batch = fm.Batch(tensor(2, 5, 3), tensor(2, 5, 2, seed=1))
    maml.evaluate(fm.Episodes(batch, batch))
    assert [plan.backend for plan in maml._plans.values()] == ["cpp"]
