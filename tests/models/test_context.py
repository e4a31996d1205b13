"""Context parameters (CAVIA): they adapt from zero, and are not meta-learned, whatever the way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from problems import meta_gradient, relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.models import FiLM, WithContext, mlp

SIZE, STEPS, LR = 3, 2, 0.7


def model() -> WithContext:
    torch.manual_seed(0)
    return WithContext(
        nn.Sequential(nn.Linear(2 + SIZE, 6), nn.Tanh(), nn.Linear(6, 1)), SIZE
    ).double()


def episodes() -> fm.Episodes:
    x, q = tensor(3, 6, 2, seed=1), tensor(3, 4, 2, seed=2)
    return fm.Episodes(
        fm.Batch(x, x.sum(-1, keepdim=True).sin()), fm.Batch(q, q.prod(-1, keepdim=True))
    )


def by_hand(body: nn.Module) -> Tensor:
    """The meta-gradient of the body, as the paper's algorithm 1 has it."""
    data, total = episodes(), torch.zeros(()).double()
    for t in range(3):
        context = torch.zeros(SIZE).double().requires_grad_()

        def loss(batch: fm.Batch, context: Tensor, t: int = t) -> Tensor:
            x = batch.inputs[t]
            return F.mse_loss(body(torch.cat([x, context.expand(len(x), -1)], 1)), batch.targets[t])

        for _ in range(STEPS):
            slope = torch.autograd.grad(loss(data.support, context), context, create_graph=True)[0]
            context = context - LR * slope
        total = total + loss(data.query, context) / 3
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, [*body.parameters()])])


def learner(**options: Any) -> fm.MAML:
    given = {"scope": "context", "steps": STEPS, **options}
    return fm.MAML(model(), given.pop("lr", LR), loss=F.mse_loss, **given)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"executor": "eager", "backend": "reference", "tasks_chunk": 1},
        {"gradient": fm.gradients.MixedMode()},
        {"gradient": fm.gradients.Checkpointed(segments=1)},
    ],
)
def test_the_meta_gradient_of_the_paper(options: dict[str, Any]) -> None:
    maml = learner(**options)
    assert relative(meta_gradient(maml, episodes()), by_hand(maml.module.module)) < 1e-12
    assert maml.module.context.grad is None
    assert fm.verify(maml, episodes()).agrees


def test_clones_and_functions_of_a_task_adapt_it_too() -> None:
    maml, data = learner(), episodes()
    expected = by_hand(maml.module.module)

    def fast_adapt(learner: Any, support: Any, query: Any) -> Tensor:
        for _ in range(STEPS):
            learner.adapt(F.mse_loss(learner(support[0]), support[1]))
        return F.mse_loss(learner(query[0]), query[1])

    sets = [(b.inputs, b.targets) for b in (data.support, data.query)]
    maml.zero_grad()
    for t in range(3):
        (fast_adapt(maml.clone(), *((x[t], y[t]) for x, y in sets)) / 3).backward()
    trainable = [*maml.module.module.parameters()]
    assert relative(torch.cat([p.grad.flatten() for p in trainable]), expected) < 1e-12
    maml.zero_grad()
    maml.per_task(fast_adapt)(*sets).loss.backward()
    assert relative(torch.cat([p.grad.flatten() for p in trainable]), expected) < 1e-12
    assert maml.module.context.grad is None
    twice = maml.clone()
    twice.adapt(F.mse_loss(twice(sets[0][0][0]), sets[0][1][0]))
    twice = twice.clone()  # a clone of a clone goes on from there
    twice.adapt(F.mse_loss(twice(sets[0][0][0]), sets[0][1][0]))
    alone = maml.adapt_to(fm.Batch(sets[0][0][0], sets[0][1][0]))
    torch.testing.assert_close(twice.module.context.detach(), alone.context.detach())
    torch.testing.assert_close(maml.adapted(data.support).module(0).context, alone.context.detach())
    assert float(alone.context.abs().sum()) > 0
    assert torch.equal(maml.module.context, torch.zeros(SIZE).double())


def test_training_leaves_it_at_zero_and_learns_the_rest() -> None:
    torch.manual_seed(0)
    maml = fm.MAML(WithContext(mlp(1 + 5, 1), 5), 1.0, scope="context", loss=F.mse_loss)
    optimizer = torch.optim.Adam(maml.parameters(), 3e-3)
    source = fm.episodes.sinusoid(shots=10, tasks=16, seed=0)
    before = float(maml.evaluate(source.sample()).loss)
    for _ in range(150):
        optimizer.zero_grad()
        maml(source.sample()).loss.backward()
        optimizer.step()
    assert torch.equal(maml.module.context, torch.zeros(5))
    assert float(maml.evaluate(source.sample()).loss) < 0.7 * before


def test_scopes_choose_it_or_leave_it() -> None:
    data = episodes()
    everything = learner(scope="all")
    everything(data).loss.backward()
    assert everything.module.context.grad is None
    assert float(everything.adapt_to(fm.Batch(*_first(data))).context.abs().sum()) > 0
    for scope in ("head", "module.*"):
        adapted = learner(scope=scope).adapt_to(fm.Batch(*_first(data)))
        assert torch.equal(adapted.context, torch.zeros(SIZE).double())
    rates = learner(lr=None, rule=fm.rules.MetaSGD(0.1)).rates
    assert [*rates] == ["rate:context"]


def _first(data: fm.Episodes) -> tuple[Tensor, Tensor]:
    return data.support.inputs[0], data.support.targets[0]


def test_what_would_learn_it_is_refused() -> None:
    thawed = model().requires_grad_(True)
    with pytest.raises(ValueError, match="context begins anew for every task, so it is not"):
        fm.MAML(thawed, LR)
    maml = learner()
    maml(episodes())
    maml.module.context.requires_grad_(True)
    with pytest.raises(ValueError, match="context begins anew for every task, so it is not"):
        maml(episodes())
    with pytest.raises(ValueError, match="jvp goes along trainable parameters"):
        learner().jvp(episodes(), {})


@pytest.mark.parametrize("dimensions", [1, 2])
def test_film_scales_and_shifts_channels(dimensions: int) -> None:
    torch.manual_seed(0)
    h = tensor(5, 4, *[3] * dimensions)
    film = FiLM(4, 6).double()
    assert torch.equal(film(h), h)  # a context of zero
    with torch.no_grad():
        film.context.copy_(tensor(6, seed=1))
    scale, shift = film.linear(film.context).view(2, 1, 4, *[1] * dimensions)
    torch.testing.assert_close(film(h), scale * h + shift)
    with pytest.raises(ValueError, match=r"FiLM\(channels=4\) takes \[examples, 4"):
        film(h[:, :3])


def test_film_in_a_convolutional_network() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(1, 4, 3), FiLM(4, 6), nn.ReLU(), nn.Flatten()
    network = nn.Sequential(*body, nn.Linear(4 * 16, 3)).double()
    x, labels = tensor(2, 6, 1, 6, 6), torch.arange(3).repeat(2, 2)
    data = fm.Episodes(fm.Batch(x, labels), fm.Batch(x.flip(1), labels))
    maml = fm.MAML(copy.deepcopy(network), 1.0, steps=2, loss=F.cross_entropy, scope="*context")
    assert maml.adapt_to(fm.Batch(x[0], labels[0]))[1].context.abs().sum() > 0
    assert fm.verify(maml, data).agrees


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: WithContext(nn.Linear(4, 1), 0), "size=0"),
        (lambda: FiLM(0, 2), "channels=0"),
        (lambda: model()(torch.zeros(4)), r"\[4\]: put it behind"),
        (lambda: model()(torch.zeros(4, 2, dtype=torch.long)), "int64"),
    ],
)
def test_bad_arguments_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
