"""From learn2learn's loop to the meta-step: the same parameters, the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from l2l_script import LR, episodes, gradient, mlp, script
from problems import relative, tensor
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
import fastmaml.compat.learn2learn as l2l


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("algorithm", ["MAML", "MetaSGD"])
@pytest.mark.parametrize("first_order", [False, True])
def test_fast_shares_everything_and_gives_the_same_gradient(
    algorithm: str, first_order: bool
) -> None:
    meta = getattr(l2l.algorithms, algorithm)(mlp(), LR, first_order=first_order)
    fast = meta.fast(loss=F.mse_loss, steps=2)
    assert type(fast) is fm.MAML
    assert fast.module is meta.module
    assert {id(p) for p in fast.parameters()} == {id(p) for p in meta.parameters()}
    loss = script(meta)
    slow = gradient(meta, loss)
    out = fast(episodes())
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert relative(gradient(meta, out.loss), slow) < 1e-12


def test_options_overrule_the_learners_own() -> None:
    maml = l2l.algorithms.MAML(mlp(), LR, first_order=True, allow_nograd=True)
    fast = maml.fast(F.mse_loss, 3, gradient=fm.gradients.Checkpointed(), batch_norm="batch")
    assert (fast.steps, fast.batch_norm, fast.allow_nograd) == (3, "batch", True)
    assert isinstance(fast.gradient, fm.gradients.Checkpointed)
    fast = maml.fast(F.mse_loss, rule=fm.rules.Momentum(0.1))
    assert isinstance(fast.rule, fm.rules.Momentum)
    assert isinstance(fast.gradient, fm.gradients.FirstOrder)


def test_a_learned_rate_is_shared() -> None:
    rate = nn.Parameter(torch.tensor(LR, dtype=torch.float64))
    maml = l2l.algorithms.MAML(mlp(), rate)
    slow = gradient(maml, script(maml))
    fast = maml.fast(F.mse_loss, 2)
    fast(episodes()).loss.backward()
    assert any(p is rate for p in fast.parameters())
    assert relative(gradient(maml, fast(episodes()).loss), slow) < 1e-12


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_does_as_the_modules_mode_says(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    model(tensor(20, 3))
    model.train(training)
    maml = l2l.algorithms.MAML(copy.deepcopy(model), LR)
    slow = gradient(maml, script(maml))
    other = l2l.algorithms.MAML(model, LR)
    assert relative(gradient(other, other.fast(F.mse_loss, 2)(episodes()).loss), slow) < 1e-12


def test_clones_and_odd_rates_are_refused() -> None:
    maml = l2l.algorithms.MAML(mlp(), LR)
    with pytest.raises(RuntimeError, match="parameters of a clone are not its own"):
        maml.clone().fast(F.mse_loss)
    with pytest.raises(ValueError, match="a learning rate is one number"):
        l2l.algorithms.MAML(mlp(), torch.ones(2).double()).fast(F.mse_loss)


def test_the_default_depends_on_running_statistics() -> None:
    maml = l2l.algorithms.MAML(mlp(), LR)
    assert maml.fast(F.mse_loss).batch_norm == "batch"
    tracking = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert l2l.algorithms.MAML(tracking, LR).fast(F.mse_loss).batch_norm == "module"
