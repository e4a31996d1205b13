"""What is set, or exchanged in the model, when a MAML is made already: obeyed or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from outcomes import outcome, vectors
from problems import tensor
from torch import nn
from torch.nn import functional as F

import fastmaml as fm


def net(out: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, out)).double()


def classes() -> fm.Episodes:
    labels = torch.arange(6).remainder(3).expand(2, 6)
    return fm.Episodes(*(fm.Batch(tensor(2, 6, 3, seed=s), labels) for s in (1, 2)))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", ["lr", "first_order"])
def test_arguments_that_others_were_made_of(name: str) -> None:
    maml = fm.MAML(net(), lr=0.3, loss=F.mse_loss)
    with pytest.raises(AttributeError, match=rf"maml.{name} = 0.1 would change nothing"):
        setattr(maml, name, 0.1)
    maml.rule = fm.rules.SGD(0.1)
    expected = outcome(fm.MAML(net(), lr=0.1, loss=F.mse_loss), vectors())
    assert outcome(maml, vectors()).same_bits(expected)


@pytest.mark.slow
def test_a_function_in_place_of_a_loss_module() -> None:
    maml = fm.MAML(net(), lr=0.3, loss=nn.MSELoss())
    maml(vectors())
    maml.loss = F.l1_loss
    expected = outcome(fm.MAML(net(), lr=0.3, loss=F.l1_loss), vectors())
    assert outcome(maml, vectors()).same_bits(expected)
    maml.loss = nn.MSELoss()
    expected = outcome(fm.MAML(net(), lr=0.3, loss=F.mse_loss), vectors())
    assert outcome(maml, vectors()).same_bits(expected)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("head", [fm.heads.Zero(), fm.heads.Prototype()])
def test_a_last_layer_that_is_another_one(head: Any) -> None:
    model = net(3)
    maml = fm.MAML(model, lr=0.3, loss=F.cross_entropy, head=head)
    maml(classes())
    model[2] = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for call in (maml, maml.evaluate):
        with pytest.raises(ValueError, match=r"made for the last layer '2.weight', which is not"):
            call(classes())
    fm.MAML(model, lr=0.3, loss=F.cross_entropy, head=head)(classes())


def test_a_last_layer_that_is_frozen_is_not_passed_over() -> None:
    model = net(3)
    model[2].requires_grad_(False)
    with pytest.raises(ValueError, match=r"2.weight of Sequential is frozen and comes after"):
        fm.MAML(model, lr=0.3, loss=F.cross_entropy, head=fm.heads.Prototype())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("rule", [fm.rules.LSLR(0.3), fm.rules.MetaSGD(0.3)], ids=["LSLR", "SGD"])
def test_learned_rates_of_layers_that_are_new(rule: Any) -> None:
    model = net()
    maml = fm.MAML(model, rule=rule, steps=2, loss=F.mse_loss)
    maml(vectors())

    @maml.per_task
    def task(own: Any, support: fm.Batch, query: fm.Batch) -> torch.Tensor:
        own.adapt(F.mse_loss(own(support.inputs), support.targets))
        return F.mse_loss(own(query.inputs), query.targets)

    model[0] = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)).double()
    for call in (maml, maml.evaluate, task):
        with pytest.raises(ValueError, match=r"for '0.0.weight' there are none"):
            call(vectors())
    maml.rule = fm.rules.SGD(0.3)
    maml(vectors())


def test_learned_rates_that_would_spread_over_a_wider_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    maml = fm.MAML(model, rule=fm.rules.MetaSGD(0.3), loss=lambda y, t: (y - t).square().mean())
    maml(vectors())
    model[2] = nn.Linear(4, 2).double()
    with pytest.raises(ValueError, match=r"'2.weight' they have the shape \(1, 4\)"):
        maml(vectors())


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("executor", [None, "eager"])
def test_a_parameter_of_another_shape(executor: str | None, backend: str | None) -> None:
    """In the same layer: the rates would spread over it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    options: dict[str, Any] = {"executor": executor, "backend": backend}
    loss = lambda y, t: (y - t).square().mean()  # noqa: E731
    maml = fm.MAML(model, rule=fm.rules.MetaSGD(0.3), loss=loss, **options)
    maml(vectors())
    model[2].weight = nn.Parameter(tensor(2, 4))
    model[2].bias = nn.Parameter(tensor(2))
    with pytest.raises(ValueError, match=r"'2.weight' they have the shape \(1, 4\)"):
        maml(vectors())


def test_more_steps_than_learned_rates() -> None:
    """The last one then serves the others, as `LSLR` says."""
    maml = fm.MAML(net(), rule=fm.rules.LSLR(0.3), steps=1, loss=F.mse_loss)
    maml.steps = 3
    expected = outcome(fm.MAML(net(), lr=0.3, steps=3, loss=F.mse_loss), vectors()).losses
    torch.testing.assert_close(outcome(maml, vectors()).losses, expected, rtol=1e-12, atol=0)


def test_settings_are_checked_when_they_are_set() -> None:
    maml = fm.MAML(net(), lr=0.3, loss=F.mse_loss)
    for name, value in (("steps", -1), ("executor", "fast"), ("batch_norm", None)):
        with pytest.raises(ValueError, match=f"{name}="):
            setattr(maml, name, value)
    with pytest.raises(AttributeError, match="chosen when the MAML is made"):
        maml.head = fm.heads.Zero()
    maml.executor = "eager"
    assert "executor: eager, as asked" in str(maml.explain(vectors()))


def test_a_loss_module_that_is_exchanged_where_it_is_registered() -> None:
    maml = fm.MAML(net(), lr=0.3, loss=nn.MSELoss())
    maml(vectors())
    maml.add_module("loss", nn.L1Loss())
    expected = outcome(fm.MAML(net(), lr=0.3, loss=F.l1_loss), vectors())
    assert outcome(maml, vectors()).same_bits(expected)


def test_a_shallow_copy_has_a_loss_of_its_own() -> None:
    maml = fm.MAML(net(), lr=0.3, loss=nn.CrossEntropyLoss(torch.ones(2)))
    other = copy.copy(maml)
    other.loss = F.mse_loss
    assert "loss.weight" in maml.state_dict()
    assert "loss.weight" not in other.state_dict()


def test_a_class_that_would_hide_a_setting() -> None:
    with pytest.raises(TypeError, match=r"Sub\.steps would stand in the place of a setting"):
        type("Sub", (fm.MAML,), {"steps": 4})


def test_reptile_by_hand_takes_second_derivatives() -> None:
    """Its own way of learning is that of whole meta-steps alone."""
    found = []
    for gradient in (None, fm.gradients.Reptile(), fm.gradients.FirstOrder()):
        maml = fm.MAML(net(), lr=0.3, loss=F.mse_loss, gradient=gradient)
        learner, x = maml.clone(), tensor(4, 3)
        learner.adapt(learner(x).square().mean())
        learner(x).square().mean().backward()
        found.append(maml.module[0].weight.grad)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
