"""`Implicit`: against closed forms, against exact methods where both arrive, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from outcomes import EAGER, PATHS, outcome, require
from problems import PROBLEMS, TASKS, meta_gradient, relative, tensor
from quadratics import Quadratic, quadratic_episodes
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Implicit, Unrolled
from fastmaml.gradients.conjugate import conjugate_gradient
from fastmaml.measure.implicit import implicit_error
from fastmaml.rules import SGD, Adam, AdamW, ClipNorm, MetaSGD, Proximal, WeightDecay, chain

BY_NAME = {problem.name: problem for problem in PROBLEMS}
STRENGTH, N = 1.5, 4


def quadratic(gradient: Any, steps: int = 150, strength: float = STRENGTH, **options: Any) -> Any:
    rule = chain(Proximal(strength), SGD(0.2))
    given = {"rule": rule, "steps": steps, "gradient": gradient, **EAGER, **options}
    return fm.MAML(Quadratic(tensor(N, seed=9)), loss=lambda output, _: output, **given)


def closed_form(damping: float = 0.0) -> Tensor:
    """With θ* the minimum: the mean over tasks of ((1 + damping)I + A/λ)⁻¹·B(θ* − b)."""
    episodes, theta, eye = quadratic_episodes(TASKS, N), tensor(N, seed=9), torch.eye(N).double()
    total = torch.zeros(N).double()
    for t in range(TASKS):
        (a, matrix), (b, query) = (
            (x[0][t, 0], x[1][t, 0]) for x in (episodes.support.inputs, episodes.query.inputs)
        )
        minimum = torch.linalg.solve(matrix + STRENGTH * eye, matrix @ a + STRENGTH * theta)
        system = (1 + damping) * eye + matrix / STRENGTH
        total += torch.linalg.solve(system, query @ (minimum - b)) / TASKS
    return total


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_closed_form_on_quadratics(damping: float) -> None:
    maml = quadratic(Implicit(iterations=N, damping=damping))
    episodes = quadratic_episodes(TASKS, N)
    assert relative(meta_gradient(maml, episodes), closed_form(damping)) < 1e-10
    if not damping:  # and the exact meta-gradient of so many steps is that, too
        assert relative(meta_gradient(quadratic(Unrolled()), episodes), closed_form()) < 1e-10
    error = implicit_error(maml, episodes)
    assert error.stationarity.max() < 1e-10
    assert error.residual.max() < 1e-8
    assert not error.indefinite.any()


@pytest.mark.parametrize("name", ["mlp", "mlp-head", "context"])
def test_it_converges_to_the_exact_meta_gradient(name: str) -> None:
    """Also of what the inner loop leaves alone; steps and iterations are both needed."""
    row = BY_NAME[name]

    def of(gradient: Any, steps: int) -> Tensor:
        rule = chain(Proximal(2.0), SGD(0.35))
        return meta_gradient(row.maml(rule, gradient=gradient, steps=steps, **EAGER), row.episodes)

    errors = [
        relative(of(Implicit(iterations), steps), of(Unrolled(), steps))
        for iterations, steps in ((1, 2), (3, 5), (15, 25))
    ]
    assert errors[2] < 1e-3 * errors[0]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("head", [fm.heads.Zero(), fm.heads.Prototype()])
def test_heads_of_every_task_begin_where_the_pull_goes(head: fm.heads.Head) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    labels = torch.arange(3).repeat(2, 2)
    sets = [fm.Batch(tensor(2, 6, 3, seed=i), labels) for i in (1, 2)]

    def of(gradient: Any) -> Tensor:
        rule = chain(Proximal(1.0), SGD(0.6))
        given = {"rule": rule, "steps": 25, "head": head, "gradient": gradient, **EAGER}
        return meta_gradient(fm.MAML(model, loss=F.cross_entropy, **given), fm.Episodes(*sets))

    assert relative(of(Implicit(15)), of(Unrolled())) < 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["mlp", "mlp-head", "conv", "dropout"])
def test_every_path_equals_eager_execution(name: str, path: str) -> None:
    require(path)
    row = BY_NAME[name]

    def of(**options: Any) -> Any:
        rule = chain(Proximal(0.7), SGD(0.2))
        return outcome(row.maml(rule, gradient=Implicit(3), **options), row.episodes)

    expected = of(**EAGER)
    of(**PATHS[path]).check_close(expected, 1e-9)  # conjugate gradients amplify what rounds
    for chunk in (1, 2):
        of(**EAGER, tasks_chunk=chunk).check_close(expected, 1e-9)


def test_without_inner_steps_it_is_the_query_gradient() -> None:
    row = BY_NAME["mlp-head"]
    found, expected = (
        meta_gradient(row.maml(chain(Proximal(1.0), SGD(0.1)), steps=0, gradient=m), row.episodes)
        for m in (Implicit(), Unrolled())
    )
    assert relative(found, expected) < 1e-14


def test_a_task_without_a_minimum_stops_at_the_query_gradient() -> None:
    """H/λ + I has negative eigenvalues only; that of the other task is solved."""
    x = torch.stack([-3 * torch.eye(N), torch.eye(N)]).double().unsqueeze(1)
    zero = torch.zeros(2, 1, N).double()
    targets = torch.zeros(2, 1)
    query = fm.Batch((zero, torch.eye(N).double().expand(2, 1, N, N)), targets)
    maml = quadratic(Implicit(), steps=1, strength=1.0)
    episodes = fm.Episodes(fm.Batch((zero, x), targets), query)
    error = implicit_error(maml, episodes)
    assert error.indefinite.tolist() == [True, False]
    theta = tensor(N, seed=9)
    moved = [theta + 0.2 * 3 * theta, theta - 0.2 * theta]
    expected = (moved[0] + moved[1] / 2) / 2
    assert relative(meta_gradient(maml, episodes), expected) < 1e-12


@pytest.mark.parametrize(
    "rule",
    [
        chain(Proximal(1.0), ClipNorm(0.5), SGD(0.2)),
        chain(Proximal(0.4), Proximal(0.6), SGD(0.2)),
        fm.rules.Scheduled(chain(Proximal(1.0), SGD(0.2)), (1, 0.5)),
        chain(Proximal(1.0), AdamW(0.1, weight_decay=0.0)),
    ],
)
def test_rules_that_stop_at_the_proximal_minimum(rule: fm.rules.Rule) -> None:
    assert rule.proximal == 1.0
    row = BY_NAME["mlp"]
    assert meta_gradient(row.maml(rule, gradient=Implicit()), row.episodes).isfinite().all()


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (SGD(0.1), "does not stop there"),
        (Adam(0.1), "does not stop there"),
        (chain(Proximal(0.0), SGD(0.1)), "does not stop there"),
        (chain(Proximal(1.0), WeightDecay(0.1), SGD(0.1)), "without weight decay"),
        (chain(Proximal(1.0), AdamW(0.1)), "without weight decay"),
        (chain(ClipNorm(1.0), Proximal(1.0), SGD(0.1)), "with Proximal first"),
        (chain(Proximal(1.0), MetaSGD(0.1)), "gives nothing to what a rule learns"),
    ],
)
def test_other_rules_are_refused(rule: fm.rules.Rule, match: str) -> None:
    row = BY_NAME["mlp"]
    with pytest.raises(ValueError, match=match):
        row.maml(rule, gradient=Implicit())
    with pytest.raises(ValueError, match=match):
        row.maml(rule)(row.episodes, gradient=Implicit())


def test_other_objectives_are_refused() -> None:
    rule = chain(Proximal(1.0), SGD(0.1))
    row, own = BY_NAME["mlp"], BY_NAME["own-supports"]
    with pytest.raises(ValueError, match="step_weights"):
        row.maml(rule, gradient=Implicit())(row.episodes, step_weights=[0.3, 0.3, 0.4])
    with pytest.raises(ValueError, match="a support set of its own"):
        own.maml(rule, gradient=Implicit())(own.episodes)
    with pytest.raises(ValueError, match=r"is about gradients.Implicit"):
        implicit_error(row.maml(rule), row.episodes)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Implicit(iterations=0), "iterations=0"),
        (lambda: Implicit(iterations=True), "iterations=True"),
        (lambda: Implicit(damping=-1.0), "damping=-1.0"),
        (lambda: Implicit(tolerance=float("nan")), "tolerance=nan"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_conjugate_gradients_of_many_tasks_at_once() -> None:
    root = tensor(3, 6, 6)
    matrix = root @ root.mT + torch.eye(6).double()
    b = tensor(3, 6, seed=1) * torch.tensor([1.0, 0.0, 1e-3]).double().view(3, 1)
    parts = {"x": b[:, :2], "y": b[:, 2:].view(3, 2, 2)}  # two tensors of each task

    def apply(v: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = torch.cat([v["x"], v["y"].flatten(1)], 1)
        found = (matrix @ whole.unsqueeze(-1)).squeeze(-1)
        return {"x": found[:, :2], "y": found[:, 2:].view(3, 2, 2)}

    def solved(iterations: int, tolerance: float = 1e-12) -> Tensor:
        x = conjugate_gradient(apply, parts, iterations, tolerance).x
        return torch.cat([x["x"], x["y"].flatten(1)], 1)

    expected = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(solved(8), expected, rtol=1e-9, atol=0)
    assert torch.equal(solved(40), solved(12))  # a task that is done does not move any more
    errors = [float((solved(i) - expected).norm()) for i in (1, 3, 6)]
    assert errors[0] > errors[1] > errors[2]
    assert torch.equal(solved(8, tolerance=1.0), torch.zeros(3, 6).double())
    bad = {"x": parts["x"] * torch.tensor([1.0, 1.0, torch.nan]).view(3, 1), "y": parts["y"]}
    found = conjugate_gradient(apply, bad, 3, 0.0).x["x"]
    assert found[:2].isfinite().all()
    assert found[2].isnan().all()


def test_rows_for_each_step_are_refused() -> None:
    """Each step then has a loss of its own, and only the last row would learn."""
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    rule = chain(Proximal(2.0), SGD(0.1))
    model = fm.models.per_step_batch_norm(net, 2)
    maml = fm.MAML(model, steps=2, loss=F.mse_loss, rule=rule, gradient=Implicit())
    with pytest.raises(ValueError, match="has another loss at each"):
        maml(BY_NAME["mlp"].episodes)


@pytest.mark.parametrize("gradient", [Implicit(), Unrolled()])
def test_single_numbers_adapt(gradient: Any) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    episodes = fm.Episodes(*(fm.Batch(tensor(3, 4, seed=i), tensor(3, 4, seed=7)) for i in (1, 2)))
    rule = chain(Proximal(2.0), ClipNorm(5.0), SGD(0.3))
    found = fm.MAML(Scaled(), rule=rule, steps=60, loss=F.mse_loss, gradient=gradient, **EAGER)
    x, y, curvature = (
        episodes.support.inputs,
        episodes.support.targets,
        2 * episodes.support.inputs.square().mean(1),
    )
    adapted = (2 * 1.5 + 2 * (x * y).mean(1)) / (2 + curvature)
    q = episodes.query
    slope = 2 * (q.inputs * (adapted.unsqueeze(1) * q.inputs - q.targets)).mean(1)
    expected = (slope / (1 + curvature / 2)).mean()
    torch.testing.assert_close(meta_gradient(found, episodes), expected.view(1), rtol=1e-8, atol=0)
