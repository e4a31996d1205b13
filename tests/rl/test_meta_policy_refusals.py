"""What a `MetaPolicy` refuses, before anything is moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_problems import Odd, acted, categorical, gaussian, learner, rounds
from torch import nn

import fastmaml as fm
from fastmaml import rl


def test_another_surrogate_needs_another_learner() -> None:
    with pytest.raises(AttributeError):
        learner(gaussian(), 1).surrogate = rl.LogProb()  # type: ignore[misc]


def test_another_outer_objective_has_to_fit() -> None:
    found = learner(gaussian(), 1, outer=rl.VPG())
    with pytest.raises(ValueError, match=r"give surrogate=LogProb\(\) with it"):
        found.outer = rl.VPG(exploration=True)
    with pytest.raises(ValueError, match=r"give an object such as rl\.PPO\(\)"):
        found.outer = rl.PPO  # type: ignore[assignment]
    heads = learner(gaussian(), 1, outer=rl.VPG(), scope="*.bias")
    with pytest.raises(ValueError, match="TRPO differentiates through the inner loop"):
        heads.outer = rl.TRPO()
    batches, query = rounds(found)
    optimizer = torch.optim.SGD(found.maml.parameters(), 0.0)
    before = found.update(batches, query, optimizer)["loss"]
    found.outer = rl.PPO(inner_kl=0.5, epochs=1)  # as recorded with it, not as before
    assert found.outer.inner_kl == 0.5
    assert found.update(batches, query, optimizer)["loss"] == pytest.approx(before, abs=1e-9)
    hand = learner(gaussian(), 1, outer=rl.PPO(inner_kl=0.5, epochs=1))
    hand.policy.load_state_dict(found.policy.state_dict())
    for each in (found, hand):
        each.maml.zero_grad()
        given = [each.data(b) for b in batches], each.data(query)
        each.meta_step(*given).loss.backward()
    for a, b in zip(found.policy.parameters(), hand.policy.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_trpo_says_where_there_is_no_formula() -> None:
    found = learner(Odd("student").double(), 1, outer=rl.TRPO())
    before = acted(found.act, 1)
    query = acted(found.adapted(before), 2)
    with pytest.raises(ValueError, match="for which PyTorch has no formula"):
        found.update([before], query)


def test_clipped_actions_are_told_from_sampled_ones() -> None:
    found = learner(gaussian(), 1)
    batches, query = rounds(found)
    clipped = replace(batches[0], actions=batches[0].actions.clamp(-0.3, 0.3))
    optimizer = torch.optim.SGD(found.maml.parameters(), 0.1)
    before = [p.clone() for p in found.maml.parameters()]
    with pytest.raises(ValueError, match="not as an environment clipped them"):
        found.update([clipped], query, optimizer)
    assert all(map(torch.equal, before, found.maml.parameters()))


def test_trajectories_of_another_policy() -> None:
    found = learner(gaussian(), 1)
    batches, query = rounds(found)
    other = learner(gaussian(7), 1)
    optimizer = torch.optim.SGD(other.maml.parameters(), 0.1)
    with pytest.raises(ValueError, match="from those of the policy that is to have acted"):
        other.update(batches, query, optimizer)
    with pytest.raises(ValueError, match="from those of the policy that is to have acted"):
        learner(gaussian(7), 1, outer=rl.TRPO()).update(batches, query)


def test_integer_actions_and_real_ones() -> None:
    real, whole = learner(gaussian(), 1), learner(categorical(), 1)
    with pytest.raises(ValueError, match=r"the actions are torch.int64"):
        real.data(acted(whole.act, 1))
    with pytest.raises(ValueError, match=r"the actions are torch.float64"):
        whole.data(acted(real.act, 1))


def test_numbers_of_batches_and_tasks() -> None:
    found = learner(gaussian(), 2)
    batches, query = rounds(found)
    optimizer = torch.optim.SGD(found.maml.parameters(), 0.1)
    with pytest.raises(
        ValueError, match="trajectories of 1 inner steps, and the policy adapts in 2"
    ):
        found.update(batches[:1], query, optimizer)
    with pytest.raises(ValueError, match=r"different numbers of tasks: \[3, 3, 2\]"):
        found.update(batches, acted(found.act, 1, tasks=2), optimizer)
    with pytest.raises(ValueError, match="needs an optimizer"):
        found.update(batches, query)


@pytest.mark.parametrize(
    ("advantages", "message"),
    [
        (lambda t: t.rewards.unsqueeze(-1), "the advantages have shape"),
        (lambda t: t.rewards.clone().requires_grad_(), "carry a graph"),
        (lambda t: t.rewards / 0, "not finite"),
    ],
)
def test_advantages_of_one_s_own(advantages: Any, message: str) -> None:
    found = learner(gaussian(), 1, advantages=advantages)
    with pytest.raises(ValueError, match=message):
        found.data(acted(found.act, 1))


def test_a_policy_gives_distributions() -> None:
    found = rl.MetaPolicy(nn.Linear(2, 2).double(), 0.1)
    with pytest.raises(TypeError, match=r"returned a Tensor: a policy is a module"):
        found.act(torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("surrogate", [rl.LVC(), rl.LoadedDiCE()])
def test_exploration_counts_once(surrogate: rl.Surrogate) -> None:
    with pytest.raises(ValueError, match=r"give surrogate=LogProb\(\) with it"):
        rl.MetaPolicy(gaussian(), surrogate=surrogate, outer=rl.VPG(exploration=True))


@pytest.mark.parametrize(
    "options",
    [{"rule": fm.rules.Momentum(0.1)}, {"rule": fm.rules.MetaSGD(0.1)}, {"scope": "mean.0.*"}],
)
def test_what_trpo_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it needs scope='all' and a rule of fixed rates"):
        rl.MetaPolicy(gaussian(), outer=rl.TRPO(), **options)
