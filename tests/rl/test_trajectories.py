"""Trajectories, what is wrong with them, and advantages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_problems import acted, gaussian
from torch import Tensor

from fastmaml import rl
from fastmaml.rl.advantages import discounted

DOUBLE = torch.float64


def trajectories(seed: int = 1, **changes: Any) -> rl.Trajectories:
    policy = gaussian()
    found: rl.Trajectories = acted(policy, seed)
    return replace(found, **changes)


def test_returns_and_lengths_count_what_the_mask_says() -> None:
    found = trajectories()
    expected = [
        [
            sum(float(found.rewards[t, s, i]) for s in range(6) if bool(found.mask[t, s, i]))
            for i in range(4)
        ]
        for t in range(3)
    ]
    torch.testing.assert_close(found.returns, torch.tensor(expected, dtype=DOUBLE))
    assert found.lengths.tolist() == found.mask.long().sum(1).tolist()
    single = found.to(torch.float32)
    assert single.rewards.dtype == single.observations.dtype == torch.float32
    assert single.mask.dtype == torch.bool
    assert single.policy is not None
    assert single.policy.tensors[0].dtype == torch.float32


def nan_at(x: Tensor, *place: int) -> Tensor:
    x = x.clone()
    x[place] = torch.nan
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda t: {"rewards": t.rewards[0]}, r"rewards has shape \[6, 4\]"),
        (lambda t: {"log_probs": t.log_probs.unsqueeze(-1)}, r"log_probs has shape \[3, 6, 4, 1\]"),
        (lambda t: {"actions": t.actions[:, :5]}, r"actions has shape \[3, 5, 4, 2\]"),
        (lambda t: {"mask": t.mask.double()}, r"mask has dtype torch.float64"),
        (lambda t: {"mask": t.mask & (torch.arange(3) != 1).view(3, 1, 1)}, "nothing of task 1"),
        (lambda t: {"mask": t.mask.flip(1)}, "has a gap after step"),
        (lambda t: {"rewards": nan_at(t.rewards, 2, 1, 3)}, "task 2, trajectory 3, step 1"),
        (
            lambda t: {"observations": nan_at(t.observations, 0, 0, 2, 1)},
            "observations is not finite in task 0, trajectory 2, step 0",
        ),
        (lambda t: {"log_probs": nan_at(t.log_probs, 1, 0, 0)}, "log_probs is not finite"),
        (
            lambda t: {"truncated": torch.ones(3, 4, dtype=torch.bool)},
            "last= is missing",
        ),
        (lambda t: {"last": torch.zeros(3, 4)}, r"last has shape \[3, 4\]"),
    ],
)
def test_what_is_wrong_is_named(changes: Any, message: str) -> None:
    found = trajectories()
    with pytest.raises(ValueError, match=message):
        replace(found, **changes(found))


def test_a_nan_beyond_the_end_is_nobody_s() -> None:
    found = trajectories()
    beyond = (~found.mask).nonzero()[0].tolist()
    odd = replace(
        found,
        rewards=nan_at(found.rewards, *beyond),
        observations=nan_at(found.observations, *beyond, 0),
    )
    assert odd.rewards.isfinite().all()
    assert rl.GAE()(odd).isfinite().all()


def test_what_is_seen_may_be_one_number() -> None:
    found = trajectories()
    flat = replace(found, observations=found.observations[..., 0], policy=None)
    wide = replace(found, observations=found.observations[..., :1], policy=None)
    torch.testing.assert_close(rl.GAE()(flat), rl.GAE()(wide), rtol=0, atol=0)


def by_hand(t: rl.Trajectories, values: Tensor, after: Tensor, gamma: float, trace: float) -> Any:
    """Σ (γλ)^k δ, a trajectory at a time."""
    found = torch.zeros_like(t.rewards)
    for task in range(t.tasks):
        for i in range(t.rewards.shape[2]):
            steps, total = int(t.lengths[task, i]), 0.0
            cut = t.truncated is not None and bool(t.truncated[task, i])
            following = float(after[task, i]) if cut else 0.0
            for step in reversed(range(steps)):
                value = float(values[task, step, i])
                error = float(t.rewards[task, step, i]) + gamma * following - value
                total = error + gamma * trace * total
                found[task, step, i], following = total, value
    return found


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("truncated", [False, True])
def test_advantages_are_those_of_a_loop(trace: float, truncated: bool) -> None:
    cut = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    last = torch.randn(3, 4, 2, dtype=DOUBLE)
    found = trajectories(**({"truncated": cut, "last": last} if truncated else {}))
    baseline = rl.LinearBaseline()
    values, after = baseline.values(found, 0.9)
    own = rl.GAE(baseline, 0.9, trace, normalize=False)(found)
    expected = by_hand(found, values, after, 0.9, trace)
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)
    assert not own[~found.mask].any()


def test_one_step_of_the_whole_trace_is_the_return() -> None:
    found = trajectories()
    own = rl.GAE(rl.ZeroBaseline(), 1.0, 1.0, normalize=False)(found)
    torch.testing.assert_close(own[:, 0], found.returns)


def test_the_baseline_is_a_least_squares_fit() -> None:
    found = trajectories()
    values, _ = rl.LinearBaseline(ridge=0.0).values(found, 0.9)
    returns = discounted(found.rewards * found.mask, 0.9)
    for task in range(3):
        keep = found.mask[task].flatten()
        seen = found.observations[task].flatten(0, 1)
        t = torch.arange(6).repeat_interleave(4).double().unsqueeze(1) / 100
        rows = torch.cat([seen, seen**2, t, t**2, t**3, torch.ones_like(t)], 1)
        fit = torch.linalg.lstsq(rows[keep], returns[task].flatten()[keep], driver="gelsd").solution
        own = values[task].flatten()[keep]
        torch.testing.assert_close(own, (rows @ fit)[keep], rtol=1e-5, atol=1e-5)


def test_normalised_advantages_have_mean_zero_and_deviation_one() -> None:
    found = trajectories()
    own = rl.GAE()(found)
    for task in range(3):
        kept = own[task][found.mask[task]]
        assert abs(float(kept.mean())) < 1e-12
        assert float(kept.std(correction=0)) == pytest.approx(1, rel=1e-12)


def test_nothing_can_be_learned_from_rewards_that_are_alike() -> None:
    found = trajectories()
    mask = torch.ones_like(found.mask)
    same = replace(found, rewards=torch.full_like(found.rewards, 2.0), mask=mask)
    with pytest.raises(ValueError, match="in every task the advantages are all alike"):
        rl.GAE()(same)
    assert not rl.GAE(sparse=True)(same).any()
    some = replace(same, rewards=torch.where(torch.arange(3).view(3, 1, 1) == 1, found.rewards, 0))
    for sparse in (True, False):
        own = rl.GAE(sparse=sparse)(some)
        assert own[1].any()
        assert not own[0].any()


@pytest.mark.parametrize("options", [{"discount": 1.1}, {"trace": -0.1}])
def test_discounts_are_shares(options: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        rl.GAE(**options)
