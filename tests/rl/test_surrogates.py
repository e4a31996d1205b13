"""Gradient and Hessian of each surrogate, by enumeration: what is right, and by how much not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from fastmaml import rl

SURROGATES: dict[str, rl.Surrogate] = {
    "log-prob": rl.LogProb(),
    "lvc": rl.LVC(),
    "dice": rl.LoadedDiCE(),
    "dice-half": rl.LoadedDiCE(0.5),
    "dice-none": rl.LoadedDiCE(0.0),
}

BANDIT = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
MEANS = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)


def derivatives(loss: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
    rows = [
        torch.autograd.grad(g, at, retain_graph=True)[0].flatten()
        if g.requires_grad
        else torch.zeros(at.numel(), dtype=at.dtype)
        for g in gradient.flatten()
    ]
    return gradient.detach().flatten(), torch.stack(rows)


def errors(found: Any, expected: Any) -> list[float]:
    return [
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    ]


def data(actions: Tensor, advantages: Tensor, distribution: Any) -> dict[str, Any]:
    with torch.no_grad():
        before = distribution.log_prob(actions)
    return {
        "actions": actions,
        "advantages": advantages,
        "mask": torch.ones_like(advantages),
        "log_probs": before,
    }


def expected_on_a_bandit(surrogate: rl.Surrogate) -> list[float]:
    theta = BANDIT.clone().requires_grad_()
    total = [torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)]
    for arm in range(3):
        distribution = Categorical(logits=theta.expand(1, 1, 3), validate_args=False)
        given = data(torch.tensor([[arm]]), MEANS[arm].view(1, 1), distribution)
        found = derivatives(-surrogate.loss(distribution, given), theta)
        total = [t + BANDIT.softmax(0)[arm] * x for t, x in zip(total, found, strict=True)]
    value = (theta.softmax(0) * MEANS).sum()
    return errors(total, derivatives(value, theta))


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Two states, two actions: logits, transitions and rewards."""
    torch.manual_seed(0)
    chances = torch.rand(2, 2, 2, dtype=torch.float64)
    rewards = torch.rand(2, 2, dtype=torch.float64)
    logits = torch.randn(2, 2, dtype=torch.float64)
    return logits, chances / chances.sum(-1, keepdim=True), rewards


def expected_on_two_steps(surrogate: rl.Surrogate) -> list[float]:
    """Trajectories of two steps from state 0; advantages are returns-to-go."""
    logits, chances, rewards = problem()
    theta = logits.clone().requires_grad_()
    total = [torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)]
    value: Any = 0.0
    for first, state, second in itertools.product(range(2), repeat=3):
        got = torch.stack([rewards[0, first], rewards[state, second]]).unsqueeze(1)
        distribution = Categorical(
            logits=theta[torch.tensor([0, state])].unsqueeze(1), validate_args=False
        )
        actions = torch.tensor([[first], [second]])
        chance = distribution.log_prob(actions).sum().exp() * chances[0, first, state]
        value = value + chance * got.sum()
        # Loaded DiCE takes any advantage: its weights do the adding up of what came before.
        to_go = got.flip(0).cumsum(0).flip(0)
        loss = 2 * surrogate.loss(distribution, data(actions, to_go, distribution))
        found = derivatives(-loss, theta)
        total = [t + chance.detach() * x for t, x in zip(total, found, strict=True)]
    return errors(total, derivatives(value, theta))


@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_are_right(name: str) -> None:
    assert expected_on_a_bandit(SURROGATES[name])[0] < 1e-14
    assert expected_on_two_steps(SURROGATES[name])[0] < 1e-14


def test_the_hessian_of_log_probabilities_is_biased() -> None:
    """By as much as the page says."""
    assert expected_on_a_bandit(SURROGATES["log-prob"])[1] == pytest.approx(1.40, rel=0.01)
    assert expected_on_two_steps(SURROGATES["log-prob"])[1] == pytest.approx(3.15, rel=0.01)


def test_lvc_lacks_what_steps_have_to_do_with_each_other() -> None:
    assert expected_on_a_bandit(SURROGATES["lvc"])[1] < 1e-14
    assert expected_on_two_steps(SURROGATES["lvc"])[1] == pytest.approx(0.047, rel=0.01)


def test_loaded_dice_is_right_twice() -> None:
    assert expected_on_a_bandit(SURROGATES["dice"])[1] < 1e-14
    assert expected_on_two_steps(SURROGATES["dice"])[1] < 1e-14


def test_decay_goes_from_lvc_to_dice() -> None:
    lvc, none, half, whole = (
        expected_on_two_steps(SURROGATES[n])[1] for n in ("lvc", "dice-none", "dice-half", "dice")
    )
    assert none == pytest.approx(lvc, rel=1e-12)
    assert whole < half < none


def test_scalars_of_an_action_are_one_log_probability() -> None:
    normal = torch.distributions.Normal(torch.zeros(4, 2, 3), torch.ones(3), validate_args=False)
    given = {n: torch.ones(4, 2) for n in ("advantages", "mask", "log_probs")}
    with pytest.raises(ValueError, match=r"Independent\(..., 1\)"):
        rl.LVC().loss(normal, {**given, "actions": torch.zeros(4, 2, 3)})


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_is_a_share(decay: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        rl.LoadedDiCE(decay)
