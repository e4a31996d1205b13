"""The meta-gradient of a linear-quadratic problem, in closed form.

A point on a line is to stay near the origin: s' = s + a, the cost of each of two steps is s'², the
policy is a ~ Normal(k·s, σ). Expectations over the two actions are exact sums, by Gauss-Hermite
quadrature: a node is a trajectory, and its share goes into its advantages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from fastmaml import rl
from fastmaml.engine.base.distributions import Parts

DOUBLE, RATE = torch.float64, 0.07
STARTS = torch.tensor([0.4, -0.9, 1.3], dtype=DOUBLE)  # one a task

_nodes, _shares = (torch.tensor(x, dtype=DOUBLE) for x in np.polynomial.hermite_e.hermegauss(7))
_shares = _shares / _shares.sum()
NODES = torch.cartesian_prod(_nodes, _nodes).T  # [steps, n]
SHARES = torch.outer(_shares, _shares).flatten()


class Linear(nn.Module):
    """The policy."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(-0.35, dtype=DOUBLE))
        self.log_deviation = nn.Parameter(torch.tensor(-0.6, dtype=DOUBLE))

    def forward(self, states: Tensor) -> Independent:
        return Independent(Normal(self.slope * states, self.log_deviation.exp()), 1)


def expected_return(slope: Tensor, log_deviation: Tensor, start: Tensor) -> Tensor:
    """-(E s₁² + E s₂²), as s' = (1 + k)·s + σ·z."""
    variance = (2 * log_deviation).exp()
    first = ((1 + slope) * start) ** 2 + variance
    return -(first + (1 + slope) ** 2 * first + variance)


def adapted_return(slope: Tensor, log_deviation: Tensor, start: Tensor) -> Tensor:
    """The same after a step up its gradient."""
    value = expected_return(slope, log_deviation, start)
    gradient = torch.autograd.grad(value, (slope, log_deviation), create_graph=True)
    return expected_return(slope + RATE * gradient[0], log_deviation + RATE * gradient[1], start)


def trajectories(act: Any) -> rl.Trajectories:
    """All nodes of the policies' two steps, ``[tasks, 2, nodes]``."""
    state = STARTS.view(-1, 1, 1).expand(-1, NODES.shape[1], 1)
    kept: list[tuple[Any, ...]] = []
    with torch.no_grad():
        for node in NODES:
            distribution = act(state)
            actions = distribution.mean + distribution.stddev * node.view(1, -1, 1)
            after = state + actions
            row = state, actions, -after.square().squeeze(-1), distribution.log_prob(actions)
            kept.append((*row, Parts.of(distribution)))
            state = after
    *tensors, parts = zip(*kept, strict=True)
    observations, actions, rewards, log_probs = (torch.stack(x, 1) for x in tensors)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    policy = parts[0].stacked([*parts[1:]], 1)
    return rl.Trajectories(observations, actions, rewards, mask, log_probs, policy=policy)


def weighted(found: rl.Trajectories) -> Tensor:
    """Returns-to-go, times the shares in place of the mean over trajectories and steps."""
    togo = rl.GAE(rl.ZeroBaseline(), discount=1.0, normalize=False)(found)
    return togo * SHARES * (SHARES.numel() * len(NODES))


def found_and_expected(surrogate: rl.Surrogate, **options: Any) -> tuple[Tensor, Tensor, Any]:
    learner = rl.MetaPolicy(
        Linear(), RATE, surrogate=surrogate, outer=rl.VPG(), advantages=weighted, **options
    )
    before = trajectories(learner.act)
    adapted = learner.adapted(before)
    batches, query = [learner.data(before)], learner.data(trajectories(adapted))
    learner.meta_step(batches, query).loss.backward()
    parameters = list(learner.policy.parameters())
    found = torch.stack([p.grad for p in parameters])  # type: ignore[arg-type]
    value = torch.stack([adapted_return(*parameters, start) for start in STARTS]).mean()
    return found, -torch.stack(torch.autograd.grad(value, parameters)), adapted


@pytest.mark.parametrize("executor", ["eager", None])
def test_loaded_dice_s_meta_gradient_is_that_of_the_closed_form(executor: Any) -> None:
    found, expected, adapted = found_and_expected(rl.LoadedDiCE(), executor=executor)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    policy = Linear()
    for task, start in enumerate(STARTS):
        value = expected_return(policy.slope, policy.log_deviation, start)
        slope, _ = torch.autograd.grad(value, [*policy.parameters()])
        expected_slope = policy.slope.detach() + RATE * slope
        torch.testing.assert_close(adapted.parameters["slope"][task], expected_slope)


@pytest.mark.parametrize("surrogate", [rl.LVC(), rl.LogProb()], ids=["LVC", "LogProb"])
def test_others_are_off(surrogate: rl.Surrogate) -> None:
    found, expected, _ = found_and_expected(surrogate)
    apart = float((found - expected).norm() / expected.norm())
    assert apart > 0.01
    first, *_ = found_and_expected(surrogate, first_order=True)
    if isinstance(surrogate, rl.LVC):
        assert apart < float((first - expected).norm() / expected.norm())
