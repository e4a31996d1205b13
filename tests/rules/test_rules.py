"""Rules against torch.optim, against closed forms, and where they could go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import EXACT, RULES, meta_gradient, relative, tensor
from quadratics import Quadratic, quadratic_episodes
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.rules import (
    LSLR,
    SGD,
    Adam,
    AdamW,
    ClipNorm,
    ClipValue,
    MetaSGD,
    Momentum,
    Rule,
    Scheduled,
    WeightDecay,
    chain,
)

OPTIMIZERS: dict[str, tuple[Callable[[], Rule], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (lambda: SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (lambda: Momentum(0.1, 0.8), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
    "nesterov": (
        lambda: Momentum(0.1, 0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True),
    ),
    "decay": (
        lambda: chain(WeightDecay(0.3), Momentum(0.1, 0.8)),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, weight_decay=0.3),
    ),
    "adam": (lambda: Adam(0.1), lambda p: torch.optim.Adam(p, 0.1)),
    "adamw": (
        lambda: AdamW(0.1, weight_decay=0.2),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.2),
    ),
    "meta-sgd": (lambda: MetaSGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "lslr": (lambda: LSLR(0.1), lambda p: torch.optim.SGD(p, 0.1)),
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_adaptation_equals_torch_optim(name: str, steps: int) -> None:
    rule, optimizer = OPTIMIZERS[name]
    model, expected = make_model(), make_model()
    x, y = tensor(5, 3, seed=1), tensor(5, 2, seed=2)
    learner = fm.MAML(model, rule=rule(), steps=steps, loss=F.mse_loss).adapt_to(fm.Batch(x, y))
    optimise = optimizer(expected.parameters())
    for _ in range(steps):
        optimise.zero_grad()
        F.mse_loss(expected(x), y).backward()
        optimise.step()
    for own, theirs in zip(learner.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", [SGD(0.4), MetaSGD(0.4), Momentum(0.4, 0.8)])
def test_a_schedule_multiplies_the_update_of_each_step(rule: Rule) -> None:
    x, y = tensor(2, 5, 3, seed=1), tensor(2, 5, 2, seed=2)
    episodes = fm.Episodes(fm.Batch(x, y), fm.Batch(x + 1, y))
    never = fm.MAML(make_model(), rule=Scheduled(rule, (1, 0)), steps=3, loss=F.mse_loss)
    once = fm.MAML(make_model(), rule=rule, steps=1, loss=F.mse_loss)
    torch.testing.assert_close(never(episodes).losses, once(episodes).losses, rtol=1e-12, atol=0)
    same = fm.MAML(make_model(), rule=Scheduled(rule, [1]), steps=3, loss=F.mse_loss)
    plain = fm.MAML(make_model(), rule=rule, steps=3, loss=F.mse_loss)
    torch.testing.assert_close(same(episodes).losses, plain(episodes).losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("rule", "factors", "message"),
    [
        (SGD(0.1), (), "give a factor"),
        (SGD(0.1), (1, -1), "finite number of at least 0"),
        (ClipNorm(1.0), (1,), "a rule that moves"),
    ],
)
def test_schedules_that_are_none(rule: Rule, factors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduled(rule, factors)


def test_clipping_equals_torch_and_is_per_task() -> None:
    model, x = make_model(), tensor(2, 5, 3, seed=1) * torch.tensor([1.0, 30.0]).view(2, 1, 1)
    y = tensor(2, 5, 2, seed=2)
    maml = fm.MAML(model, rule=chain(ClipNorm(0.7), SGD(1.0)), loss=F.mse_loss)
    for task in range(2):
        copy = make_model()
        F.mse_loss(copy(x[task]), y[task]).backward()
        nn.utils.clip_grad_norm_(copy.parameters(), 0.7)
        alone = maml.adapt_to(fm.Batch(x[task], y[task]))
        for own, theirs in zip(alone.parameters(), copy.parameters(), strict=True):
            torch.testing.assert_close(own, theirs - theirs.grad, rtol=1e-9, atol=1e-12)
    together = maml.evaluate(fm.Episodes(fm.Batch(x, y), fm.Batch(x, y))).losses
    each = [
        maml.evaluate(fm.Episodes(fm.Batch(a, b), fm.Batch(a, b))).loss
        for a, b in zip(x.split(1), y.split(1), strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(each))


@pytest.mark.sampled(at_most=3)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.2)])
def test_closed_form_on_quadratics(method: str, steps: int, momentum: float, decay: float) -> None:
    """With linear gradients the adapted θ is an affine map of θ, so the meta-gradient is its
    transposed matrix times the query gradient: an independent recurrence of matrices."""
    n, tasks, lr = 4, 3, 0.3
    episodes, theta = quadratic_episodes(tasks, n), tensor(n, seed=9)
    rule: Rule = Momentum(lr, momentum) if momentum else SGD(lr)
    rule = chain(WeightDecay(decay), rule) if decay else rule
    maml = fm.MAML(
        Quadratic(theta),
        rule=rule,
        steps=steps,
        loss=lambda output, _: output,
        gradient=EXACT[method],
    )
    expected = torch.zeros(n, dtype=torch.float64)
    eye, zero = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for t in range(tasks):
        (a, matrix), (b, query) = (
            (x[0][t, 0], x[1][t, 0]) for x in (episodes.support.inputs, episodes.query.inputs)
        )
        position, jacobian, velocity, slope = theta.clone(), eye, torch.zeros_like(theta), zero
        for _ in range(steps):
            velocity = momentum * velocity + matrix @ (position - a) + decay * position
            slope = momentum * slope + (matrix + decay * eye) @ jacobian
            position, jacobian = position - lr * velocity, jacobian - lr * slope
        expected += jacobian.T @ query @ (position - b) / tasks
    assert relative(meta_gradient(maml, episodes), expected) < 1e-12


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("rule", ["adam", "adamw", "clip-decay-sgd"])
@pytest.mark.parametrize("method", EXACT)
def test_differentiable_at_a_zero_gradient(rule: str, method: str) -> None:
    """A unit that the support set never reaches has a gradient of exactly zero at every step."""
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(3, 1)).double()
    support = torch.zeros(2, 3, 1, dtype=torch.long)  # only row 0 of the table
    query = torch.tensor([0, 1, 2]).view(1, 3, 1).repeat(2, 1, 1)
    y = tensor(2, 3, 1, seed=1)
    maml = fm.MAML(model, rule=RULES[rule](), steps=3, loss=F.mse_loss, gradient=EXACT[method])
    gradient = meta_gradient(maml, fm.Episodes(fm.Batch(support, y), fm.Batch(query, y)))
    assert gradient.isfinite().all()
    assert (model[0].weight.grad[1] != 0).all()  # reached by the query set alone
    assert (model[0].weight.grad[3] == 0).all()


def test_learned_rates_are_meta_parameters() -> None:
    model, rate = make_model(), nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    names = [n for n, _ in model.named_parameters()]
    maml = fm.MAML(model, rule=SGD(rate), loss=F.mse_loss)
    assert any(p is rate for p in maml.parameters())
    maml = fm.MAML(model, rule=MetaSGD(0.1), loss=F.mse_loss)
    assert [p.shape for p in maml.rates.values()] == [
        dict(model.named_parameters())[n].shape for n in sorted(names)
    ]
    maml = fm.MAML(model, rule=LSLR(0.1), steps=3, loss=F.mse_loss)
    assert all(p.shape == (3,) for p in maml.rates.values())
    x = tensor(2, 4, 3, seed=1)
    episodes = fm.Episodes(fm.Batch(x, x[..., :2]), fm.Batch(x, x[..., :2]))
    maml(episodes).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in maml.parameters())
    assert maml.evaluate(episodes, steps=5).loss.isfinite()  # beyond the learned steps
    other = fm.MAML(make_model(), rule=LSLR(0.5), steps=3, loss=F.mse_loss)
    other.load_state_dict(maml.state_dict())
    assert torch.equal(other.evaluate(episodes).losses, maml.evaluate(episodes).losses)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SGD(-0.1), "lr=-0.1"),
        (lambda: SGD(float("nan")), "lr=nan"),
        (lambda: SGD(torch.ones(3)), "MetaSGD"),
        (lambda: Momentum(0.1, momentum=1.0), "momentum=1.0"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), "betas"),
        (lambda: Adam(0.1, eps=0.0), "eps=0.0"),
        (lambda: AdamW(0.1, weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda: ClipNorm(-1.0), "max_norm=-1.0"),
        (lambda: ClipValue(-1.0), "limit=-1.0"),
        (lambda: WeightDecay(-1.0), "coefficient=-1.0"),
        (lambda: fm.rules.Proximal(-1.0), "strength=-1.0"),
        (lambda: fm.rules.MetaCurvature(-1.0), "MetaCurvature.lr=-1.0"),
        (lambda: fm.rules.KFO(float("inf")), "KFO.lr=inf"),
        (lambda: fm.rules.KFO(0.1, psd=1), "psd=1"),
        (lambda: fm.rules.ALFA(0.1, decay=-1.0), "decay=-1.0"),
        (lambda: fm.rules.ALFA(0.1, seed=-1), "seed=-1"),
        (lambda: chain(SGD(0.1), ClipNorm(1.0)), "comes last"),
        (lambda: chain(ClipNorm(1.0)), "exactly one rule moves"),
        (lambda: chain(SGD(0.1), SGD(0.1)), "exactly one rule moves"),
        (lambda: fm.MAML(make_model(), rule=ClipNorm(1.0)), "does not move"),
        (lambda: fm.MAML(make_model()), "not neither"),
        (lambda: fm.MAML(make_model(), 0.1, rule=SGD(0.1)), "not both"),
    ],
)
def test_bad_rules_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
