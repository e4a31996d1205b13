"""Rules that learn how gradients are turned: Meta-Curvature, KFO and ALFA, by other formulas."""

from __future__ import annotations

import pytest
import torch
from problems import relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
import fastmaml.compat.learn2learn as l2l
from fastmaml.rules import ALFA, KFO, LSLR, SGD, MetaCurvature, WeightDecay, chain

SHAPES = {"bias": (4,), "matrix": (4, 3), "conv": (4, 3, 2, 5)}
OTHERS = {"scale": (), "conv1d": (4, 3, 5), "conv3d": (2, 3, 2, 1, 2)}


def parameters(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {n: tensor(1, *shape, seed=i)[0] for i, (n, shape) in enumerate(shapes.items())}


def random_rates(
    rule: fm.rules.Rule, given: dict[str, Tensor], steps: int = 1
) -> dict[str, Tensor]:
    found = rule.rates(given, steps)
    return {
        n: x + 0.3 * tensor(1, *x.shape, seed=i + 20)[0] for i, (n, x) in enumerate(found.items())
    }


def updates(rule: fm.rules.Rule, given: dict[str, Tensor], rates: dict[str, Tensor]) -> dict:
    """For two tasks, whose gradients are the parameters and their squares."""
    stacked = {n: torch.stack([p, p * p]) for n, p in given.items()}
    return rule.update(0, stacked, (), stacked, rates)[0]


def test_meta_curvature_is_learn2learns() -> None:
    given, rule = parameters(**SHAPES), MetaCurvature(0.5)
    rates = random_rates(rule, given)
    found = updates(rule, given, rates)
    for name, p in given.items():
        transform = l2l.optim.MetaCurvatureTransform(p, lr=0.5)
        own = [x for n, x in rates.items() if n.startswith(f"{name}.")]
        for mine, theirs in zip(own, transform.parameters(), strict=True):
            theirs.data = mine
        for task, g in enumerate((p, p * p)):
            torch.testing.assert_close(found[name][task], -transform(g), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("psd", [True, False])
def test_kfo_is_learn2learns(psd: bool) -> None:
    given, rule = parameters(**SHAPES), KFO(0.5, psd)
    rates = random_rates(rule, given)
    found = updates(rule, given, rates)
    make = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear, psd=psd)
    for name, p in given.items():
        transform = make(p)
        transform.transform.left.data = rates[f"{name}.left"]
        transform.transform.right.data = rates[f"{name}.right"]
        for task, g in enumerate((p, p * p)):
            expected = -0.5 * transform(g)
            torch.testing.assert_close(found[name][task], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", [MetaCurvature(0.5), KFO(0.5), ALFA(0.5, decay=0.0)])
def test_parameters_of_any_shape(rule: fm.rules.Rule) -> None:
    given = parameters(**SHAPES, **OTHERS)
    rates = rule.rates(given, 2)
    if isinstance(rule, ALFA):
        rates["hidden.weight"] = torch.zeros_like(rates["hidden.weight"])  # every factor is 1
    found = updates(rule, given, rates)
    for name, p in given.items():
        torch.testing.assert_close(found[name], -0.5 * torch.stack([p, p * p]))
    moved = updates(rule, given, random_rates(rule, given))
    assert all(moved[n].shape == (2, *p.shape) for n, p in given.items())


def test_meta_curvature_of_a_volume_is_one_matrix_for_its_positions() -> None:
    p, rule = tensor(2, 3, 2, 1, 2), MetaCurvature(1.0)
    rates = random_rates(rule, {"w": p})
    assert [x.shape[0] for x in rates.values()] == [2, 3, 4]
    expected = torch.einsum("ax,xyp,yb,qp->abq", rates["w.0"], p.flatten(2), *[*rates.values()][1:])
    found = updates(rule, {"w": p}, rates)["w"][0]
    torch.testing.assert_close(found, -expected.view_as(p), rtol=1e-12, atol=1e-13)


def test_alfa_by_a_network_of_torch() -> None:
    given, rule, steps = parameters(**SHAPES), ALFA(0.2, decay=0.1), 2
    rates = random_rates(rule, given, steps)
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    names = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
    for p, name in zip(network.parameters(), names, strict=True):
        p.data = rates[name]
    weights = {n: torch.stack([p, p.sin()]) for n, p in given.items()}
    gradients = {n: torch.stack([p.cos(), p * p]) for n, p in given.items()}
    for step in range(steps + 1):  # one more than was learned
        found = rule.update(step, gradients, (), weights, rates)[0]
        for task in range(2):
            means = [x[task].mean() for x in (*weights.values(), *gradients.values())]
            factors = network(torch.stack(means))
            for i, name in enumerate(given):
                rate = factors[i] * rates[f"{name}.rate"][min(step, 1)]
                decay = factors[3 + i] * rates[f"{name}.decay"][min(step, 1)]
                expected = -decay * weights[name][task] - rate * gradients[name][task]
                torch.testing.assert_close(found[name][task], expected, rtol=1e-12, atol=1e-13)


def test_alfa_draws_nothing_of_the_users() -> None:
    given = parameters(**SHAPES)
    before = torch.get_rng_state()
    first, again, other = (ALFA(0.1, seed=s).rates(given, 1) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["hidden.weight"], again["hidden.weight"])
    assert not torch.equal(first["hidden.weight"], other["hidden.weight"])
    with pytest.raises(ValueError, match="ALFA cannot take the mean of 'w'"):
        ALFA(0.1).rates({"w": torch.zeros(2, dtype=torch.complex64)}, 1)


@pytest.mark.parametrize(
    ("rule", "same"),
    [(MetaCurvature(0.3), SGD(0.3)), (KFO(0.3), SGD(0.3)), (KFO(0.3, psd=False), LSLR(0.3))],
)
def test_they_begin_as_gradient_descent(rule: fm.rules.Rule, same: fm.rules.Rule) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = tensor(2, 5, 3, seed=1)
    episodes = fm.Episodes(fm.Batch(x, x[..., :2]), fm.Batch(x + 1, x[..., :2]))
    found, expected = (
        fm.MAML(model, rule=r, steps=3, loss=F.mse_loss)(episodes).losses for r in (rule, same)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    maml = fm.MAML(model, rule=rule, steps=3, loss=F.mse_loss)
    maml(episodes).loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in maml.rates.values())


def test_alfa_begins_near_descent_with_decay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = tensor(2, 5, 3, seed=1)
    batch = fm.Batch(x[0], x[0, :, :2])
    rules = ALFA(0.1, decay=0.05), chain(WeightDecay(0.5), SGD(0.1))
    adapted = [fm.MAML(model, rule=r, loss=F.mse_loss).adapt_to(batch) for r in rules]
    ours, near = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in adapted)
    moved = near - nn.utils.parameters_to_vector(model.parameters()).detach()
    assert 0 < float((ours - near).norm()) < 0.3 * float(moved.norm())
    assert relative(ours, near) < 0.05
