"""Distributions inside a meta-step are not checked, and outside they are as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import tensor
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.base.unvalidated import unvalidated


def checks() -> bool:
    try:
        Normal(torch.zeros(()), torch.tensor(-1.0))
    except ValueError:
        return True
    return False


def fails_inside() -> None:
    with unvalidated():
        with unvalidated():
            assert not checks()
        assert not checks()
        raise KeyError


def test_the_setting_is_as_it_was_afterwards() -> None:
    assert checks()
    with pytest.raises(KeyError):
        fails_inside()
    assert checks()
    Distribution.set_default_validate_args(False)
    try:
        with unvalidated():
            assert not checks()
        assert not checks()
    finally:
        Distribution.set_default_validate_args(True)


def test_a_function_with_distributions_is_recorded() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    maml = fm.MAML(model, lr=0.1)

    def likelihood(learner: Any, x: Tensor, y: Tensor) -> Tensor:
        return -Normal(learner(x), 0.5).log_prob(y).mean()

    @maml.per_task
    def run(learner: Any, x: Tensor, y: Tensor) -> Tensor:
        learner.adapt(likelihood(learner, x, y))
        return likelihood(learner, x, y)

    x, y = tensor(4, 5, 3, seed=1), tensor(4, 5, 2, seed=2)
    for _ in range(3):
        found = torch.autograd.grad(run(x, y).loss, list(model.parameters()))
    (plan,) = run._plans.values()
    assert plan.recorded
    assert plan.batched
    assert checks()
    # The same but for a constant: a squared error over the variance.
    other = fm.MAML(model, lr=0.1, loss=lambda a, b: F.mse_loss(a, b) / (2 * 0.25))
    batch = fm.Batch(x, y)
    loss = other(fm.Episodes(batch, batch)).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
