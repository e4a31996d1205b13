"""A user's own function of one task, run for all at once: the numbers of a loop by hand."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from per_task_cases import PATHS, TASKS, by_hand, check, data, gradients, network
from torch import Tensor, nn
from torch.func import functional_call

import fastmaml as fm


def adapting(steps: int, **how: Any) -> Any:
    """Steps whose losses differ, so that it is not what maml(episodes) does."""

    def task(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Any:
        for k in range(steps):
            learner.adapt(F.cross_entropy(learner(xs), ys) * (k + 1), **how)
        logits = learner(xq)
        right = (logits.argmax(-1) == yq).double().mean()
        return F.cross_entropy(logits, yq), {"accuracy": right, "logits": logits, "steps": steps}

    return task


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("path", PATHS)
def test_numbers_are_those_of_the_loop(path: str, first_order: bool) -> None:
    model = network()
    maml = fm.MAML(model, lr=0.3, first_order=first_order, **PATHS[path])
    run = maml.per_task(adapting(3))
    for sizes in ((5, 4), (7, 2), (5, 4)):  # sizes differ between calls
        given = data(*sizes, seed=sum(sizes))
        losses = by_hand(model, given, 0.3, 3, first_order)
        torch.stack(losses).mean().backward()
        expected = gradients(model)
        out = run(*given)
        torch.testing.assert_close(out.losses, torch.stack(losses).detach(), rtol=1e-11, atol=0)
        assert out.outputs["steps"].tolist() == [3] * TASKS
        assert out.outputs["logits"].shape == (TASKS, sizes[1], 3)
        right = (out.outputs["logits"].argmax(-1) == given[3]).double().mean(1)
        assert torch.equal(out.outputs["accuracy"], right)
        out.loss.backward()
        check(gradients(model), expected)


def test_first_order_for_a_single_step() -> None:
    model, given = network(), data()
    torch.stack(by_hand(model, given, 0.3, 2, True)).mean().backward()
    expected = gradients(model)
    fm.MAML(model, lr=0.3).per_task(adapting(2, first_order=True))(*given).loss.backward()
    check(gradients(model), expected)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("rule", [fm.rules.MetaSGD(0.1), fm.rules.Adam(0.05), fm.rules.LSLR(0.1)])
def test_the_same_as_episodes_for_what_both_can(rule: fm.rules.Rule) -> None:
    """Also with BatchNorm, and given as Episodes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    xs, ys, xq, yq = data()
    episodes = fm.Episodes(fm.Batch(xs, ys), fm.Batch(xq, yq))
    maml = fm.MAML(model, rule=rule, steps=2, loss=F.cross_entropy)
    out = maml(episodes)
    out.loss.backward()
    expected = [p.grad for p in maml.parameters()]
    maml.zero_grad()

    @maml.per_task
    def task(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(2):
            learner.adapt(F.cross_entropy(learner(support.inputs), support.targets))
        return F.cross_entropy(learner(query.inputs), query.targets)

    same = task(episodes)
    torch.testing.assert_close(same.losses, out.losses, rtol=1e-11, atol=0)
    same.loss.backward()
    check([p.grad for p in maml.parameters()], expected)


def test_a_loss_of_ones_own_over_what_is_returned() -> None:
    model, given = network(), data()
    maml = fm.MAML(model, lr=0.3)
    out = maml.per_task(adapting(1))(*given)
    (out.losses * torch.tensor([1.0, 0.0, 2.0])).sum().backward()
    found = gradients(model)
    losses = by_hand(model, given, 0.3, 1, False)
    (losses[0] + 2 * losses[2]).backward()
    check(found, gradients(model))


def test_regularised_by_the_learners_parameters() -> None:
    model, given = network(), data()

    def task(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        start = [p.detach() for p in learner.parameters()]
        learner.adapt(F.cross_entropy(learner(xs), ys))
        away = sum((p - s).square().sum() for p, s in zip(learner.parameters(), start, strict=True))
        names = {n for n, _ in learner.named_parameters()}
        assert "0.weight" in names
        return F.cross_entropy(learner(xq), yq) + away

    batched = fm.MAML(model, lr=0.3).per_task(task)(*given)
    looped = fm.MAML(model, lr=0.3, tasks_chunk=1, executor="eager").per_task(task)(*given)
    torch.testing.assert_close(batched.losses, looped.losses, rtol=1e-12, atol=0)


def test_what_cannot_be_batched_runs_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    model, given = network(), data()

    def task(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        loss = F.cross_entropy(learner(xs), ys)
        while float(loss) > 0.9:  # as many steps as it takes
            learner.adapt(loss)
            loss = F.cross_entropy(learner(xs), ys)
        return F.cross_entropy(learner(xq), yq)

    with caplog.at_level(logging.WARNING, "fastmaml"):
        out = fm.MAML(model, lr=0.5).per_task(task)(*given)
    assert "one task at a time" in caplog.text
    out.loss.backward()
    assert any(g is not None and bool(g.any()) for g in gradients(model))


def test_without_gradients() -> None:
    model, given = network(), data()
    expected = torch.stack(by_hand(model, given, 0.3, 2, True)).detach()
    with torch.no_grad():
        out = fm.MAML(model, lr=0.3).per_task(adapting(2))(*given)
    torch.testing.assert_close(out.losses, expected, rtol=1e-11, atol=0)
    assert not out.loss.requires_grad


def test_dropout_is_that_of_the_task() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3)).double()
    given = data()

    def losses(**how: Any) -> Tensor:
        torch.manual_seed(5)
        return fm.MAML(model, lr=0.3, **how).per_task(adapting(2))(*given).losses.detach()

    torch.testing.assert_close(losses(), losses(tasks_chunk=1, executor="eager"))
    torch.manual_seed(6)
    other = fm.MAML(model, lr=0.3).per_task(adapting(2))(*given).losses
    assert not torch.allclose(other.detach(), losses())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"gradient": fm.gradients.Checkpointed()}, "what you wrote"),
        ({"head": fm.heads.Zero()}, "leave out head=Zero"),
    ],
)
def test_settings_without_a_meaning_are_refused(how: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=message):
        fm.MAML(model, lr=0.1, **how).per_task(adapting(1))


def test_bad_calls_say_what_is_wrong() -> None:
    maml = fm.MAML(network(), lr=0.1)
    xs, ys, xq, yq = data()
    with pytest.raises(ValueError, match="first dimension is the tasks"):
        maml.per_task(adapting(1))(xs, ys, xq[:2], yq)
    with pytest.raises(ValueError, match="scalar query loss"):
        maml.per_task(lambda learner, x, *_: learner(x))(xs, ys)
    with pytest.raises(RuntimeError, match="scalar loss"):
        maml.per_task(lambda learner, x, *_: learner.adapt(learner(x)))(xs, ys)
    with pytest.raises(RuntimeError, match="does not depend"):
        maml.per_task(lambda learner, x, *_: learner.adapt(x.sum()))(xs, ys)
    with pytest.raises(RuntimeError, match=r"learner\(inputs\).*torch.no_grad"):
        maml.per_task(lambda learner, x: x.mean())(xs)
    with torch.no_grad():
        assert maml.per_task(lambda learner, x: x.mean())(xs).loss == xs.mean()
    with pytest.raises(ValueError, match=r"requires a gradient.*part of the model"):
        maml.per_task(lambda learner, x: learner(x).sum())(xs.clone().requires_grad_())
    with pytest.raises(ValueError, match="was given a ndarray: give tensors"):
        maml.per_task(lambda learner, x, z: learner(x).sum())(xs, xs.numpy())
    with pytest.raises(fm.NonFiniteLoss, match="task"):
        maml.per_task(lambda learner, x, *_: learner(x).sum() / 0)(xs)


class _TwoNames(nn.Module):
    """A layer that is registered twice, as some libraries' networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.features = nn.Sequential(nn.Flatten(), self.base)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.mark.slow
def test_a_layer_with_two_names_stays_the_models_own() -> None:
    torch.manual_seed(0)
    model, given = _TwoNames().double(), data()
    # torch.func.functional_call would spoil it: the loop by hand has a plain twin.
    twin = copy.deepcopy(nn.Sequential(*model.base, model.head))
    torch.stack(by_hand(twin, given, 0.3, 2, False)).mean().backward()
    expected = gradients(twin)
    weight = model.base[0].weight
    for how in PATHS.values():
        maml = fm.MAML(model, lr=0.3, steps=2, loss=F.cross_entropy, **how)
        out = maml.per_task(adapting(2))(*given)
        out.loss.backward()
        check(gradients(model), expected)
        xs, ys, xq, yq = given
        maml(fm.Episodes(fm.Batch(xs, ys), fm.Batch(xq, yq))).loss.backward()
        assert all(g is not None for g in gradients(model))
        assert model.base[0].weight is weight
        assert isinstance(weight, nn.Parameter)


def test_a_task_differentiates_by_the_learners_parameters() -> None:
    """Also where it looked at the model without gradients before."""
    model, given = network()[:3].double(), data()
    maml = fm.MAML(model, lr=0.3, loss=F.cross_entropy, executor="eager")

    @maml.per_task
    def penalised(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        learner.adapt(F.cross_entropy(learner(xs), ys))
        with torch.no_grad():
            learner(xq)
        loss = F.cross_entropy(learner(xq), yq)
        found = torch.autograd.grad(loss, list(learner.parameters()), create_graph=True)
        return sum((g.square().sum() for g in found), torch.zeros(()))

    penalised(*given).loss.backward()
    losses = []
    for xs, ys, xq, yq in zip(*given, strict=True):
        theta: dict[str, Tensor] = dict(model.named_parameters())
        for x, y in ((xs, ys), (xq, yq)):
            loss = F.cross_entropy(functional_call(model, theta, (x,)), y)
            found = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {n: p - 0.3 * g for (n, p), g in zip(theta.items(), found, strict=True)}
        losses.append(sum(g.square().sum() for g in found))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)
