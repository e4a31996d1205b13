"""`verify` with learned rates, which a loop of one's own takes by the name ``rates``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hand_loop import batch_loss
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
import fastmaml.compat.higher as higher
import fastmaml.compat.learn2learn as l2l

LR, STEPS = 0.5, 2
KINDS = ("lr", "meta-sgd", "lslr")


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def make(kind: str, loss: Any = F.cross_entropy) -> fm.MAML:
    rules = {"meta-sgd": fm.rules.MetaSGD(LR), "lslr": fm.rules.LSLR(LR)}
    lr = nn.Parameter(torch.tensor(LR)) if kind == "lr" else None
    return fm.MAML(classifier(), lr=lr, rule=rules.get(kind), steps=STEPS, loss=loss)


def episodes() -> fm.Episodes:
    labels = torch.arange(4).repeat(5, 2)
    return fm.Episodes(*(fm.Batch(tensor(5, 8, 3, seed=s).float(), labels) for s in (1, 2)))


def plain(model: nn.Module, data: fm.Episodes, rates: Mapping[str, Tensor]) -> Tensor:
    """With a rate for all, for each element, or for each tensor and step."""
    losses = []
    for task in data:
        adapted = dict(model.named_parameters())
        for step in range(STEPS):
            loss = batch_loss(model, F.cross_entropy, adapted, task.support)
            found = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
            pairs = zip(adapted.items(), found, strict=True)
            adapted = {n: p - _rate(rates, n, p, step) * g for (n, p), g in pairs}
        losses.append(batch_loss(model, F.cross_entropy, adapted, task.query))
    return torch.stack(losses).mean()


def _rate(rates: Mapping[str, Tensor], name: str, like: Tensor, step: int) -> Tensor:
    rate = rates["lr"] if "lr" in rates else rates[name]
    return rate if rate.ndim == 0 or rate.shape == like.shape else rate[step]


def detaching(model: nn.Module, data: fm.Episodes, rates: Mapping[str, Tensor]) -> Tensor:
    return plain(model, data, {name: rate.detach() for name, rate in rates.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_takes_rates_and_their_gradients_are_rows(kind: str) -> None:
    torch.manual_seed(1)
    maml = make(kind)
    with torch.no_grad():
        for rate in maml.rates.values():  # else a loop could take another rate's
            rate.mul_(1 + 0.1 * torch.rand_like(rate))
    found = fm.verify(maml, episodes(), plain, tolerance=1e-12)
    assert found.agrees
    assert found.notes == ()
    rows = {d.name: d for d in found.gradients if d.name.startswith("rates.")}
    assert len(rows) == len(maml.rates) > 0
    copy = make(kind)
    copy.load_state_dict(maml.state_dict())
    copy = copy.double()
    copy.module.double()
    rates = {n.removeprefix("rate:").replace("/", "."): r for n, r in copy.rates.items()}
    plain(copy.module, episodes().to(torch.float64), rates).backward()
    for name, rate in copy.rates.items():
        assert rows[f"rates.{name}"].size == pytest.approx(float(rate.grad.abs().max()), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_that_detaches_its_rates_is_different_in_their_rows(kind: str) -> None:
    maml = make(kind)
    found = fm.verify(maml, episodes(), detaching)
    assert not found.agrees
    assert found.loss is not None
    assert found.loss.relative < 1e-12
    wrong = {d.name for d in found.gradients if d.relative > found.tolerance}
    assert wrong == {f"rates.{name}" for name in maml.rates}
    assert all(d.size == 0 for d in found.gradients if d.name in wrong)
    assert found.worst.name in wrong
    assert found.notes[0].startswith("the loop gave no gradient to rates.rate:")


def test_the_derivative_by_a_rate_is_that_of_the_formula() -> None:
    """θ' = θ - α(θ - s), loss (θ' - q)²/2: by θ it is (θ' - q)(1 - α), by α -(θ' - q)(θ - s)."""
    theta, s, q, alpha = 0.7, -0.4, 1.3, 0.25

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.theta.expand_as(x)

    def half_square(output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * ((output - target) ** 2).mean()

    def loop(model: Any, data: fm.Episodes, rates: Mapping[str, Tensor]) -> Tensor:
        moved = model.theta - rates["lr"] * (model.theta - data.support.targets[0, 0])
        return 0.5 * (moved - data.query.targets[0, 0]) ** 2

    rate = nn.Parameter(torch.tensor(alpha, dtype=torch.float64))
    maml = fm.MAML(Point(), lr=rate, loss=half_square)
    sets = (torch.full((1, 1), x, dtype=torch.float64) for x in (s, q))
    data = fm.Episodes(*(fm.Batch(torch.zeros_like(x), x) for x in sets))
    found = fm.verify(maml, data, loop, tolerance=1e-14)
    assert found.agrees
    residual = theta - alpha * (theta - s) - q
    size = {d.name: d.size for d in found.gradients}
    assert size["theta"] == pytest.approx(abs(residual * (1 - alpha)), rel=1e-13)
    assert size["rates.rate:lr"] == pytest.approx(abs(residual * (theta - s)), rel=1e-13)
    assert rate.grad is None


def test_learn2learns_meta_sgd_takes_them() -> None:
    def loop(model: nn.Module, data: fm.Episodes, rates: Mapping[str, Tensor]) -> Tensor:
        lrs = [rates[name] for name, _ in model.named_parameters()]
        meta = l2l.algorithms.MetaSGD(model, lrs=lrs)
        losses = []
        for task in data:
            learner = meta.clone()
            for _ in range(STEPS):
                support = task.support
                learner.adapt(F.cross_entropy(learner(support.inputs[0]), support.targets[0]))
            losses.append(F.cross_entropy(learner(task.query.inputs[0]), task.query.targets[0]))
        return torch.stack(losses).mean()

    own = l2l.algorithms.MetaSGD(classifier(), lr=LR)
    fast = own.fast(loss=F.cross_entropy, steps=STEPS)
    for maml in (
        fast,
        make("meta-sgd"),
    ):
        found = fm.verify(maml, episodes(), reference=loop, tolerance=1e-12)
        assert found.agrees
        assert sum(d.name.startswith("rates.") for d in found.gradients) == 4


def test_highers_override_takes_one() -> None:
    def loop(model: nn.Module, data: fm.Episodes, rates: Mapping[str, Tensor]) -> None:
        for task in data:
            inner = torch.optim.SGD(model.parameters(), lr=1.0)
            with higher.innerloop_ctx(
                model, inner, copy_initial_weights=False, override={"lr": [rates["lr"]]}
            ) as (fmodel, diffopt):
                for _ in range(STEPS):
                    support = task.support
                    diffopt.step(F.cross_entropy(fmodel(support.inputs[0]), support.targets[0]))
                loss = F.cross_entropy(fmodel(task.query.inputs[0]), task.query.targets[0])
                (loss / data.tasks).backward()

    maml = make("lr")
    found = fm.verify(maml, episodes(), loop, tolerance=1e-12)
    assert found.agrees
    assert found.gradients[-1].name == "rates.rate:lr"
    assert maml.rates["rate:lr"].grad is None


def test_per_task_functions_have_rates_as_well() -> None:
    maml = make("lslr")

    @maml.per_task
    def run(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(support.inputs), support.targets))
        return F.cross_entropy(learner(query.inputs), query.targets)

    assert fm.verify(run, episodes(), plain, tolerance=1e-12).agrees
    assert fm.verify(run, episodes(), detaching).worst.name.startswith("rates.")

    @maml.per_task
    def named_alike(learner: Any, x: Tensor, rates: float) -> Tensor:
        learner.adapt(learner(x).square().mean())
        return learner(x).mean() * rates

    x = tensor(2, 3, 3).float()
    assert fm.verify(named_alike, x, rates=2.0).agrees
    with pytest.raises(ValueError, match="rates= is an argument of named_alike"):
        fm.verify(named_alike, x, rates=2.0, reference=plain)


def test_rates_without_learned_ones_are_none() -> None:
    def loop(model: nn.Module, data: fm.Episodes, rates: Mapping[str, Tensor]) -> Tensor:
        assert rates == {}
        return plain(model, data, {"lr": torch.tensor(LR, dtype=torch.float64)})

    maml = fm.MAML(classifier(), lr=LR, steps=STEPS, loss=F.cross_entropy)
    assert fm.verify(maml, episodes(), loop, tolerance=1e-12).agrees


def test_a_loss_in_float32_is_named() -> None:
    def single(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.float(), target)

    def loop(model: nn.Module, data: fm.Episodes, rates: Mapping[str, Tensor]) -> Tensor:
        return plain(model, data, rates)

    maml = make("lr", single)
    found = fm.verify(maml, episodes(), loop)
    assert not found.agrees
    assert found.notes[0].startswith("a difference as float32 rounds")
    assert fm.verify(maml, episodes(), loop, tolerance=1e-5).agrees
    other = fm.verify(maml, episodes(), loop, tolerance=0.0, dtype=None)
    assert not any("as float32 rounds" in note for note in other.notes)
