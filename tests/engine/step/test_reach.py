"""Something trainable outside of the model would get no meta-gradient: that is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from outcomes import vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

FEATURES = nn.Linear(3, 3).double()


class WithFeatures(nn.Module):
    """Its features are not registered, so they are none of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(FEATURES(x))
        return y


class WeightedLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, y: Tensor, target: Tensor) -> Tensor:
        return self.weight * F.mse_loss(y, target)


def maml(model: nn.Module, loss: Any = F.mse_loss, **more: Any) -> fm.MAML:
    return fm.MAML(model, 0.1, steps=2, loss=loss, **more)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("gradient", [None, fm.gradients.MixedMode(), fm.gradients.FirstOrder()])
def test_a_layer_that_is_not_in_the_model(executor: Any, gradient: Any) -> None:
    learner = maml(WithFeatures(), executor=executor, gradient=gradient)
    for _ in range(2):  # of a plan that is known, too
        with pytest.raises(ValueError, match=r"shape \[3, 3\].*does not reach it.*scope="):
            learner(vectors())
    assert learner.evaluate(vectors()).loss.isfinite()


def test_a_loss_with_parameters() -> None:
    loss = WeightedLoss()
    with pytest.raises(ValueError, match=r"shape \[\] .*freeze it with requires_grad_\(False\)"):
        maml(nn.Linear(3, 2).double(), loss)(vectors())
    loss.requires_grad_(False)
    assert maml(nn.Linear(3, 2).double(), loss)(vectors()).loss.isfinite()


@pytest.mark.parametrize("name", ["support", "query"])
def test_episodes_that_require_a_gradient(name: str) -> None:
    episodes = vectors()
    getattr(episodes, name).inputs.requires_grad_()
    with pytest.raises(ValueError, match=f"the {name} set requires a gradient"):
        maml(nn.Linear(3, 2).double())(episodes)
    assert maml(nn.Linear(3, 2).double()).evaluate(episodes).loss.isfinite()
    with torch.no_grad():
        assert maml(nn.Linear(3, 2).double())(episodes).loss.isfinite()


def test_what_is_learned_is_no_stranger() -> None:
    """Frozen layers, shared ones, rates and tied weights are all the model's own."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)).double()
    model[0].requires_grad_(False)
    model[1].weight = model[0].weight
    for rule in (fm.rules.MetaSGD(0.1), fm.rules.SGD(nn.Parameter(torch.tensor(0.1)))):
        learner = fm.MAML(model, rule=rule, steps=2, loss=F.mse_loss, scope="head")
        learner(vectors()).loss.backward()
        assert all(p.grad is not None for p in learner.rates.parameters())
        assert model[2].weight.grad is not None
        assert model[0].weight.grad is None


def test_a_tasks_own_head_is_no_stranger() -> None:
    labels = torch.tensor([[0, 1, 0, 1]] * 3)
    inputs = vectors().support.inputs
    batch = fm.Batch(inputs, labels)
    learner = maml(nn.Linear(3, 2).double(), F.cross_entropy, head=fm.heads.Zero())
    assert learner(fm.Episodes(batch, batch)).loss.isfinite()
