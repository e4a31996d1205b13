"""learn2learn's two verbs: what a drop-in must keep, and the defects that are not copied."""

from __future__ import annotations

import pytest
import torch
from hand_loop import hand_loop
from problems import RULES, Tied, relative, tensor
from torch import nn
from torch.nn import functional as F

import fastmaml as fm


def make(**options: object) -> fm.MAML:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    return fm.MAML(model, 0.3, **options)  # type: ignore[arg-type]


def episodes() -> fm.Episodes:
    x, q = tensor(3, 5, 3, seed=1), tensor(3, 4, 3, seed=2)
    return fm.Episodes(fm.Batch(x, x[..., :2].sin()), fm.Batch(q, q[..., :2].cos()))


def script(maml: fm.MAML, steps: int = 2, **adapt: object) -> torch.Tensor:
    """The loop of a learn2learn script; the meta-gradient as one vector."""
    maml.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for task in episodes():
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(
                F.mse_loss(learner(task.support.inputs[0]), task.support.targets[0]), **adapt
            )
        total = total + F.mse_loss(learner(task.query.inputs[0]), task.query.targets[0])
    (total / 3).backward()
    return torch.cat([p.grad.flatten() for p in maml.parameters() if p.grad is not None])


@pytest.mark.parametrize("first_order", [False, True])
def test_a_learn2learn_script_gives_the_same_gradient(first_order: bool) -> None:
    maml = make(first_order=first_order)
    expected = hand_loop(maml.module, F.mse_loss, episodes(), 0.3, 2, first_order)[1]
    flat = torch.cat([g.flatten() for g in expected.values()])
    assert relative(script(maml), flat) < 1e-12
    assert relative(script(make(), first_order=first_order), flat) < 1e-12


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("rule", RULES)
def test_clone_and_adapt_with_every_rule_equal_the_meta_step(rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    maml = fm.MAML(model, rule=RULES[rule](), steps=2, loss=F.mse_loss)
    found = script(maml)
    maml.zero_grad()
    maml(episodes()).loss.backward()
    assert relative(found, torch.cat([p.grad.flatten() for p in maml.parameters()])) < 1e-12


def test_what_a_clone_shares_and_what_it_owns() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    maml = fm.MAML(model, 0.1)
    assert all(k.startswith("module.") for k in maml.state_dict())
    learner = maml.clone()
    assert type(learner) is fm.MAML
    assert learner.module is not model
    assert learner.module[1].running_mean is model[1].running_mean  # shared, as in learn2learn
    weight = learner.module[0].weight
    assert not weight.is_leaf
    before = model[0].weight.detach().clone()
    learner.adapt(learner(tensor(5, 3)).square().mean())
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(learner.module[0].weight, before)
    second = learner.clone()  # a clone of a clone stays connected
    second(tensor(5, 3)).sum().backward()
    assert model[0].weight.grad is not None
    assert learner.clone()._progress.step == 1


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    maml = fm.MAML(Tied().double(), 0.3)
    learner = maml.clone()
    assert learner.module.out.weight is learner.module.embed.weight
    tokens = torch.randint(6, (5, 3))
    learner.adapt(F.cross_entropy(learner(tokens), torch.arange(5)))
    assert learner.module.out.weight is learner.module.embed.weight
    assert not torch.equal(learner.module.out.weight, maml.module.out.weight)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_modules(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    maml = fm.MAML(kind(3, 4, batch_first=True).double(), 0.3)
    learner, x = maml.clone(), tensor(2, 5, 3)
    before = learner(x)[0]
    learner.adapt(before.square().mean())
    assert not torch.equal(learner(x)[0], before)  # the adapted weights are what runs
    learner(x)[0].square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in maml.parameters())


def test_frozen_and_unused_parameters_need_the_arguments_that_say_so() -> None:
    maml = make()
    maml.module[0].weight.requires_grad_(False)
    learner = maml.clone()
    loss = learner(tensor(5, 3)).square().mean()
    with pytest.raises(RuntimeError, match="allow_nograd=True"):
        learner.adapt(loss)
    learner.adapt(loss, allow_nograd=True)
    assert torch.equal(learner.module[0].weight, maml.module[0].weight)

    maml = make()
    learner = maml.clone()
    only_first = learner.module[0](tensor(5, 3)).square().mean()
    with pytest.raises(RuntimeError, match="allow_unused=True"):
        learner.adapt(only_first, first_order=True)
    learner.adapt(only_first, allow_unused=True)  # the failing call left the graph alone
    assert torch.equal(learner.module[2].weight, maml.module[2].weight)
    learner(tensor(5, 3)).sum().backward()
    assert maml.module[2].weight.grad is not None


def test_adapt_is_for_clones_and_for_scalars() -> None:
    maml = make()
    with pytest.raises(RuntimeError, match=r"maml\.clone\(\)"):
        maml.adapt(maml(tensor(5, 3)).sum())
    learner = maml.clone()
    with pytest.raises(RuntimeError, match=r"shape \[5, 2\]"):
        learner.adapt(learner(tensor(5, 3)))


def test_a_learned_scalar_rate() -> None:
    rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    torch.manual_seed(0)
    maml = fm.MAML(nn.Linear(3, 2).double(), rate)
    learner = maml.clone()
    learner.adapt(learner(tensor(5, 3)).square().mean())
    learner(tensor(5, 3, seed=1)).square().mean().backward()
    assert rate.grad.abs() > 0


def test_parametrized_modules_can_be_cloned() -> None:
    class Doubled(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w.tanh()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).double()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    maml = fm.MAML(model, lr=0.5, steps=1, loss=F.cross_entropy)
    learner = maml.clone()
    learner.adapt(F.cross_entropy(learner(x), y))
    F.cross_entropy(learner(x), y).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    maml.zero_grad()
    batch = fm.Batch(x.unsqueeze(0), y.unsqueeze(0))
    maml(fm.Episodes(batch, batch)).loss.backward()
    expected = [p.grad for p in model.parameters()]
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
