"""Modules with a row for every inner step: each pass has its own, by every way of running it."""

from __future__ import annotations

from operator import mul
from typing import Any

import pytest
import torch
from outcomes import EAGER, PATHS, require
from problems import EXACT, meta_gradient, tensor
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastmaml as fm
from fastmaml.models import PerStep, at_inner_step, per_step_batch_norm
from fastmaml.rules import LSLR, SGD

TASKS, STEPS = 3, 3
WEIGHTS = [0.2, 0.3, 0.5]


def plain() -> nn.Sequential:
    """Two normalised layers; what adapts in the head alone is after both."""
    first = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2, track_running_stats=False), nn.SiLU()
    second = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.SiLU()
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(8, 3))


def per_step(rows: int = STEPS, model: nn.Module | None = None) -> nn.Module:
    """The same with rows that are far apart."""
    torch.manual_seed(0)
    model = per_step_batch_norm((plain() if model is None else model).double(), rows)
    with torch.no_grad():
        for i, module in enumerate(m for m in model.modules() if isinstance(m, PerStep)):
            for j, p in enumerate(module.parameters()):
                p.add_(tensor(*p.shape, seed=10 * i + j) / 2)
    return model


def episodes() -> fm.Episodes:
    def labels(n: int, seed: int) -> Tensor:
        return torch.randint(3, (TASKS, n), generator=torch.Generator().manual_seed(seed))

    support = fm.Batch(tensor(TASKS, 4, 1, 4, 4, seed=1), labels(4, 2))
    return fm.Episodes(support, fm.Batch(tensor(TASKS, 5, 1, 4, 4, seed=3), labels(5, 4)))


def loss_at(parameters: dict[str, Tensor], row: int, batch: fm.Batch) -> Tensor:
    """Of the plain model, whose layers get the row of their step."""
    own = {n: p[row] if n[:2] in ("1.", "4.") else p for n, p in parameters.items()}
    output = functional_call(plain().double(), own, (batch.inputs,))
    return F.cross_entropy(output, batch.targets)


def by_hand(
    maml: fm.MAML, names: list[str], steps: int = STEPS, weights: Any = None, rows: int = STEPS
) -> tuple[list[Tensor], Tensor]:
    """The query losses after each number of steps, and the meta-gradient, written out.

    Args:
        maml: its parameters and, with LSLR, its rates.
        names: what adapts.
        steps: inner steps.
        weights: of the query losses; None for the last alone.
        rows: that there are.
    """
    theta = dict(maml.module.named_parameters())
    rates = {n: maml.rates[f"rate:{n.replace('.', '/')}"] for n in names} if maml.rates else {}
    every: list[list[Tensor]] = []
    for task in episodes():
        support, query = (b.map(lambda x: x[0]) for b in (task.support, task.query))
        now = dict(theta)
        found = [loss_at(now, 0, query)]
        for k in range(steps):
            inner = loss_at(now, min(k, rows - 1), support)
            grads = torch.autograd.grad(inner, [now[n] for n in names], create_graph=True)
            for n, g in zip(names, grads, strict=True):
                now[n] = now[n] - (rates[n][k] if rates else 0.3) * g
            found.append(loss_at(now, min(k, rows - 1), query))
        every.append(found)
    mean = [torch.stack(x).mean() for x in zip(*every, strict=True)]
    shares = [0.0] * (steps - 1) + [1.0] if weights is None else weights
    total: Any = mean[0] if not steps else sum(map(mul, shares, mean[1:]))
    inputs = [p for p in maml.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, inputs, materialize_grads=True)
    return [x.detach() for x in mean], torch.cat([g.flatten() for g in grads])


def names_of(maml: fm.MAML) -> list[str]:
    scope = maml.scope
    named = dict(maml.module.named_parameters())
    if scope == "head":
        return ["7.weight", "7.bias"]
    return [n for n in named if scope == "all" or scope(n, named[n])]  # type: ignore[operator]


SCOPES: dict[str, dict[str, Any]] = {
    "all": {"rule": SGD(0.3), "scope": "all"},
    "paper": {"rule": LSLR(0.3), "scope": lambda n, _: n[:2] not in ("1.", "4.")},
    "head": {"rule": SGD(0.3), "scope": "head"},
}


def maml_of(scope: str, rows: int = STEPS, **options: Any) -> fm.MAML:
    given: dict[str, Any] = {"steps": STEPS, **SCOPES[scope], **options}
    return fm.MAML(per_step(rows), loss=F.cross_entropy, **given)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("path", [*PATHS, "eager-reference"])
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["last", "multi-step"])
def test_it_is_the_loop_by_hand(scope: str, method: str, path: str, weights: Any) -> None:
    require(path)
    maml = maml_of(scope, gradient=EXACT[method], **PATHS.get(path, EAGER))
    losses, expected = by_hand(maml, names_of(maml), weights=weights)
    for _ in range(2):  # the second is a replay
        found = meta_gradient(maml, episodes(), step_weights=weights)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    each = maml.evaluate_each_step(episodes())
    for out, loss in zip(each, losses, strict=True):
        torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=0)


def test_every_row_counts() -> None:
    """Else the test above would not see that rows were exchanged."""
    maml = maml_of("paper")
    meta_gradient(maml, episodes(), step_weights=WEIGHTS)
    for name in ("1.weight", "4.bias"):
        by_row = maml.module.get_parameter(name).grad.norm(dim=1)  # type: ignore[union-attr]
        assert by_row.min() > 1e-3
    swapped = maml_of("paper")
    with torch.no_grad():
        table = swapped.module.get_parameter("1.weight")
        table.copy_(table.flip(0))
    losses = (m.evaluate(episodes()).loss for m in (maml, swapped))
    assert abs(float(next(losses) - next(losses))) > 0.01


@pytest.mark.parametrize(("rows", "steps"), [(2, 4), (4, 2), (3, 0), (1, 3)])
def test_more_and_fewer_steps_than_rows(rows: int, steps: int) -> None:
    maml = maml_of("all", rows=rows, steps=steps)
    losses, expected = by_hand(maml, names_of(maml), steps, rows=rows)
    found = meta_gradient(maml, episodes())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maml.evaluate(episodes()).loss, losses[-1])


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_adapted_modules_keep_the_row_of_their_last_step(steps: int) -> None:
    maml = maml_of("paper", steps=steps, rows=STEPS)
    out = maml.evaluate(episodes())
    value = maml.adapted(episodes().support)
    torch.testing.assert_close(value(episodes().query.inputs), out.outputs)
    further = maml.adapted(episodes().support, steps=1)
    for _ in range(steps - 1):
        further = further.step(episodes().support)
    torch.testing.assert_close(further(episodes().query.inputs), out.outputs)
    for i, task in enumerate(episodes()):
        support, query = (b.map(lambda x: x[0]) for b in (task.support, task.query))
        for module in (maml.adapt_to(support), value.module(i)):
            torch.testing.assert_close(module(query.inputs), out.outputs[i])
    assert not any("inner_step" in vars(m) for m in maml.module.modules())


def test_clones_and_functions_of_a_task_count_their_steps() -> None:
    maml = maml_of("all")
    _, expected = by_hand(maml, names_of(maml))

    def run(learner: Any, x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> Tensor:
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(x), y))
        return F.cross_entropy(learner(x_query), y_query)

    data = episodes()
    sets = data.support.inputs, data.support.targets, data.query.inputs, data.query.targets
    by_clones = torch.stack([run(maml.clone(), *(x[i] for x in sets)) for i in range(TASKS)]).mean()
    grads = torch.autograd.grad(by_clones, list(maml.parameters()))
    found = torch.cat([g.flatten() for g in grads])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for _ in range(2):
        maml.zero_grad()
        maml.per_task(run)(*sets).loss.backward()
        found = torch.cat([p.grad.flatten() for p in maml.parameters()])  # type: ignore[union-attr]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert fm.verify(maml, data).agrees


def test_a_direction_goes_through_the_rows() -> None:
    maml = maml_of("all")
    _, gradient = by_hand(maml, names_of(maml))
    v = {n: tensor(*p.shape, seed=i) for i, (n, p) in enumerate(maml.module.named_parameters())}
    found = maml.jvp(episodes(), v).losses_along.mean()
    torch.testing.assert_close(found, gradient @ torch.cat([x.flatten() for x in v.values()]))


class Block(nn.Module):
    """Its body runs again in the backward pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", [{}, EAGER], ids=["default", "eager"])
def test_layers_that_run_again_do_so_with_their_row(how: dict[str, Any]) -> None:
    def made(block: type[Block] | Any) -> fm.MAML:
        torch.manual_seed(0)
        layers = list(plain())
        model = nn.Sequential(block(nn.Sequential(*layers[:3])), *layers[3:])
        return fm.MAML(per_step(model=model), lr=0.3, steps=STEPS, loss=F.cross_entropy, **how)

    again, once = made(Block), made(lambda body: body)
    assert any("run again" in line for line in again.explain(episodes()).reasons)
    found, expected = (meta_gradient(m, episodes(), step_weights=WEIGHTS) for m in (again, once))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


class Shift(PerStep):
    """A user's own."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(tensor(steps, 2, seed=5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.at_step(self.shift)


def test_a_module_of_ones_own_and_its_row_outside() -> None:
    layer, x = Shift(3), tensor(4, 2)
    assert torch.equal(layer(x), x * layer.shift[2])
    for step, row in ((0, 0), (1, 1), (7, 2), (None, 2)):
        with at_inner_step(layer, step):
            assert torch.equal(layer(x), x * layer.shift[row])
    assert layer.inner_step is None
    maml = fm.MAML(
        nn.Sequential(nn.Linear(3, 2), Shift(2)).double(), lr=0.2, steps=2, loss=F.mse_loss
    )
    batch = fm.Batch(tensor(2, 4, 3, seed=1), tensor(2, 4, 2, seed=2))
    assert fm.verify(maml, fm.Episodes(batch, batch)).agrees


def test_conversion() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, eps=0.1), nn.BatchNorm2d(2, affine=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 3.0]))
    model[0].bias.requires_grad_(False)
    found = per_step_batch_norm(model, 4)
    assert type(model[0]) is nn.BatchNorm2d
    assert type(found[1]) is nn.BatchNorm2d
    assert torch.equal(found[0].weight, torch.tensor([2.0, 3.0]).expand(4, 2))
    assert [p.requires_grad for p in found[0].parameters()] == [True, False]
    x = torch.randn(5, 2, 3, 3)
    torch.testing.assert_close(found(x), model(x))
    torch.testing.assert_close(found[0].eval()(x), model[0](x))
    alone = per_step_batch_norm(nn.BatchNorm1d(2), 3)
    torch.testing.assert_close(alone(x[..., 0]), nn.BatchNorm1d(2)(x[..., 0]))
    with pytest.raises(
        ValueError, match=r"PerStepBatchNorm1d was given a tensor of shape \[5, 2, 3"
    ):
        alone(x)
    with pytest.raises(ValueError, match="no BatchNorm layer with weights"):
        per_step_batch_norm(nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="1 is a BatchNorm3d, of which there is no per-step kind"):
        per_step_batch_norm(nn.Sequential(nn.Flatten(), nn.BatchNorm3d(2)), 3)
    with pytest.raises(ValueError, match="steps=0: give a positive integer"):
        fm.models.PerStepBatchNorm2d(4, 0)
