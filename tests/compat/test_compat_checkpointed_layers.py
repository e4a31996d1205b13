"""Learners that are called and adapted by hand, of models with `torch.utils.checkpoint` inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_way import episodes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastmaml as fm
from fastmaml.compat import higher
from fastmaml.compat import learn2learn as l2l
from fastmaml.measure.verify import verify

LR, STEPS = 0.5, 3
GIVEN = episodes()[0]
Run = Callable[..., Tensor]
Gradients = dict[str, Tensor]


def plainly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = checkpoint(function, x, use_reentrant=False)
    return found


def reentrant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = checkpoint(function, x, use_reentrant=True)
    return found


class Squared(torch.autograd.Function):
    """Which no function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        return 2 * ctx.saved_tensors[0] * given[0]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.square = nn.Linear(4, 4), Squared.apply

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(torch.tanh(x))
        return h + 0.3 * self.square(h) if self.training else 2 * h


class Net(nn.Module):
    """Regions around a module, and around functions that use a parameter."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.out = nn.Linear(3, 4), Inner(), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.full((4,), 1.5))
        self.run = run
        self.double()

    def encode(self, x: Tensor) -> Tensor:
        h = self.run(self.inner, torch.tanh(self.first(x)))
        h = self.run(lambda y: torch.sin(self.scale * y), h)
        return self.run(lambda y: self.run(self.inner, y).exp() * self.scale, 0.3 * h)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.encode(x)))


def tasks() -> Any:
    support, query = GIVEN.support, GIVEN.query
    return zip(support.inputs, support.targets, query.inputs, query.targets, strict=True)


def by_verbs(clone: Callable[[], Any], call: Callable[[Any, Tensor], Tensor]) -> None:
    """The loop of MAML with `clone` and `adapt`; the query set is seen in evaluation mode."""
    for x, y, query, targets in tasks():
        learner = clone()
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(call(learner, x), y))
        learner.eval()
        loss = F.cross_entropy(call(learner, query), targets)
        learner.train()
        loss.backward()


def called(learner: Any, x: Tensor) -> Tensor:
    found: Tensor = learner(x)
    return found


def by_method(learner: Any, x: Tensor) -> Tensor:
    found: Tensor = learner.module.out(torch.tanh(learner.encode(x)))
    return found


def clones(model: Net) -> None:
    by_verbs(fm.MAML(model, lr=LR).clone, called)


def first_order(model: Net) -> None:
    by_verbs(fm.MAML(model, lr=LR, first_order=True).clone, called)


def methods(model: Net) -> None:
    by_verbs(fm.MAML(model, lr=LR).clone, by_method)


def learn2learn(model: Net) -> None:
    by_verbs(l2l.algorithms.MAML(model, lr=LR).clone, called)


def learn2learn_methods(model: Net) -> None:
    by_verbs(l2l.algorithms.MAML(model, lr=LR).clone, by_method)


def meta_curvature(model: Net) -> None:
    by_verbs(l2l.algorithms.GBML(model, lambda p: None, lr=LR).clone, called)


def in_place(model: Net) -> None:
    """As learn2learn allows, of the learner itself."""
    own = dict(model.named_parameters())
    learner = l2l.algorithms.MAML(model, lr=LR)
    x, y, query, targets = next(tasks())
    for _ in range(STEPS):
        learner.adapt(F.cross_entropy(learner(x), y))
    F.cross_entropy(learner(query), targets).backward()
    for name, p in own.items():  # where `gradients` looks
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner)._parameters[last] = p  # type: ignore[assignment]


def functional_models(model: Net) -> None:
    for x, y, query, targets in tasks():
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (fast, step):
            for _ in range(STEPS):
                step.step(F.cross_entropy(fast(x), y))
            F.cross_entropy(fast(query), targets).backward()


def learned_rates(model: Net) -> None:
    """Where the initial weights are leaves."""
    model.rate = nn.Parameter(torch.tensor(LR, dtype=torch.float64))
    x, y, query, targets = next(tasks())
    own = [p for n, p in model.named_parameters() if n != "rate"]
    optimizer, rates = torch.optim.SGD(own, lr=LR), {"lr": [model.rate]}
    with higher.innerloop_ctx(model, optimizer, override=rates) as (fast, step):
        for _ in range(STEPS):
            step.step(F.cross_entropy(fast(x), y))
        F.cross_entropy(fast(query), targets).backward()


def transformed(model: Net) -> None:
    layer = l2l.nn.ParameterTransform(model, lambda p: nn.Tanh())
    x, y, *_ = next(tasks())
    F.cross_entropy(layer(x), y).backward()


WAYS = [
    *(clones, first_order, methods, learn2learn, learn2learn_methods, meta_curvature, in_place),
    *(functional_models, learned_rates, transformed),
]


def gradients(way: Callable[[Net], None], run: Run) -> Gradients:
    model = Net(run)
    way(model)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", WAYS)
def test_meta_gradients_are_those_without_regions(way: Callable[[Net], None]) -> None:
    expected, found = gradients(way, plainly), gradients(way, again)
    assert expected
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)


def test_nothing_stays_behind_in_the_model() -> None:
    model = Net(again)
    clones(model)
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in model.modules())


def test_gradients_that_the_first_step_decides_would_tell() -> None:
    """Else nothing above could fail."""
    one, two = gradients(clones, plainly), gradients(first_order, plainly)
    assert (one["first.weight"] - two["first.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("way", [clones, learn2learn, functional_models])
def test_regions_that_have_no_second_derivative_are_refused(way: Callable[[Net], None]) -> None:
    with pytest.raises(ValueError, match="give use_reentrant=False"):
        gradients(way, reentrant)


def test_a_part_that_is_called_by_itself_is_refused() -> None:
    learner, x = fm.MAML(Net(again), lr=LR).clone(), torch.randn(2, 3, dtype=torch.float64)
    for alone in (learner.module, l2l.clone_module(Net(again))):
        with pytest.raises(RuntimeError, match=r"would run a learner's Inner again"):
            alone(x)
        with torch.no_grad():
            torch.testing.assert_close(alone(x), learner(x))
        torch.testing.assert_close(again(lambda y: Net(again).first(y), x), Net(again).first(x))


def for_meta_steps(run: Run) -> Net:
    model = Net(run)
    model.inner.square = torch.square  # type: ignore[assignment]
    return model


def test_a_clone_in_a_region() -> None:
    expected = gradients(clones, plainly)
    model = Net(plainly)
    by_verbs(fm.MAML(model, lr=LR).clone, lambda learner, x: again(learner, x))
    assert expected.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-12)


def test_the_meta_step_of_a_clone() -> None:
    meta = fm.MAML(for_meta_steps(again), lr=LR, steps=STEPS, loss=F.cross_entropy)
    torch.testing.assert_close(meta.clone()(GIVEN).loss, meta(GIVEN).loss)


def test_the_loop_that_verify_compares_with_is_right() -> None:
    maml = fm.MAML(for_meta_steps(again), lr=LR, steps=STEPS, loss=F.cross_entropy)
    assert verify(maml, GIVEN, tolerance=1e-12).agrees
