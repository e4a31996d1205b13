"""What the learner of a per-task function has besides a call and `adapt`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import relative
from torch import Tensor, nn

import fastmaml as fm
import fastmaml.compat.learn2learn as l2l

HOW: list[dict[str, Any]] = [{}, {"executor": "eager"}, {"executor": "eager", "tasks_chunk": 1}]


class Net(nn.Module):
    """With all that a model may have: sub-modules in lists, tied weights, buffers, methods."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.notes = 5, {"a": 1}
        self.features = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5))
        self.more = nn.ModuleList([nn.Linear(5, 5), nn.Tanh()])
        self.classifier = nn.Linear(5, 3)
        self.more[0].weight = self.features[2].weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.full((5,), 0.25))

    def encode(self, x: Tensor) -> Tensor:
        x = self.features(x) * self.scale + self.shift
        for layer in self.more:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encode(x))


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 8, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (3, 8), generator=generator)


def by_parts(learner: Any, x: Tensor) -> Tensor:
    """The forward pass, in pieces."""
    x = learner.features[:2](x)
    x = learner.features[2](x) * learner.scale + learner.module.shift
    for layer in learner.more:
        x = layer(x)
    assert len(learner.more) == 2
    assert learner.width == 5
    return F.linear(x, learner.classifier.weight, learner.module.classifier.bias)


WAYS: dict[str, Any] = {
    "call": lambda learner, x: learner(x),
    "forward": lambda learner, x: learner.forward(x),
    "module": lambda learner, x: learner.module(x),
    "method": lambda learner, x: learner.classifier(learner.encode(x)),
    "parts": by_parts,
}


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("how", HOW, ids=["captured", "batched", "one by one"])
@pytest.mark.parametrize("way", WAYS)
def test_parts_compute_with_this_tasks_parameters(way: str, how: dict[str, Any]) -> None:
    def task(learner: Any, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(2):
            learner.adapt(F.cross_entropy(WAYS[way](learner, x[::2]), y[::2]))
        return F.cross_entropy(WAYS[way](learner, x[1::2]), y[1::2])

    model, given = net(), data()
    slow = l2l.algorithms.MAML(model, 0.3)
    for x, y in zip(*given, strict=True):
        (task(slow.clone(), x, y) / 3).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    fm.MAML(model, 0.3, **how).per_task(task)(*given).loss.backward()
    assert relative(torch.cat([p.grad.flatten() for p in model.parameters()]), expected) < 1e-11


def test_a_part_has_its_parameters() -> None:
    def task(learner: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        before = dict(learner.features.named_parameters())
        learner.adapt(F.cross_entropy(learner(x), y))
        away = [p - before[n] for n, p in learner.features.named_parameters()]
        assert len(list(learner.module.parameters())) == 8
        return F.cross_entropy(learner(x), y), (list(before), [d.abs().sum() for d in away])[1]

    model, given = net(), data()
    maml = fm.MAML(model, 0.3)
    moved = maml.per_task(task)(*given).outputs
    x, y = (t[0] for t in given)
    found = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.features.parameters()))
    for a, g in zip(moved, found, strict=True):
        torch.testing.assert_close(a[0].detach(), 0.3 * g.abs().sum())


def test_frozen_layers_and_a_scope() -> None:
    def task(learner: Any, x: Tensor, y: Tensor) -> Tensor:
        learner.adapt(F.cross_entropy(learner.classifier(learner.encode(x)), y))
        return F.cross_entropy(learner(x), y)

    model, given = net(), data()
    model.features[0].requires_grad_(False)
    fm.MAML(model, 0.3, scope="head").per_task(task)(*given).loss.backward()
    assert model.features[0].weight.grad is None
    assert model.features[2].weight.grad.any()


def test_a_clone_leaves_the_learner_where_it_is() -> None:
    def task(learner: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        other = learner.clone(first_order=True)
        other.adapt(F.cross_entropy(other(x), y))
        assert learner.clone() is not learner
        return F.cross_entropy(learner(x), y), F.cross_entropy(other(x), y)

    model, given = net(), data()
    out = fm.MAML(model, 0.3).per_task(task)(*given)
    losses = torch.stack([F.cross_entropy(model(x), y) for x, y in zip(*given, strict=True)])
    torch.testing.assert_close(out.losses, losses)
    assert (out.outputs < out.losses).all()


def test_a_clone_draws_masks_of_its_own() -> None:
    def task(learner: Any, x: Tensor) -> tuple[Tensor, Any]:
        a, b = learner(x), learner.clone()(x)
        return a.square().mean(), (a - b).abs().max()

    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5)).double()
    assert (fm.MAML(model, 0.3).per_task(task)(data()[0]).outputs > 0).all()


def test_the_mode_is_the_models() -> None:
    modes: list[bool] = []

    def task(learner: Any, x: Tensor, y: Tensor) -> Tensor:
        assert learner.train(modes[0]) is learner
        assert (learner if modes[0] else learner.eval()).training is modes[0]
        return F.cross_entropy(learner(x), y)

    maml = fm.MAML(net(), 0.3)
    for mode in (True, False):
        modes[:] = [mode]
        maml.train(mode)
        assert maml.per_task(task)(*data()).loss.isfinite()
    modes[:] = [True]
    with pytest.raises(RuntimeError, match=r"call maml.train\(\) before"):
        maml.per_task(task)(*data())
    maml.train()
    maml.module.features.eval()
    with pytest.raises(RuntimeError, match="some of its layers"):
        maml.per_task(task)(*data())


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda learner: learner.zero_grad(), "call maml.zero_grad.. outside"),
        (lambda learner: learner.state_dict(), "adapt_to"),
        (lambda learner: learner.features.requires_grad_(False), "outside of the function"),
        (lambda learner: learner.nonsense, "has no 'nonsense', nor has its Net"),
        (lambda learner: learner.notes, "does not hand out 'notes', a dict"),
        (lambda learner: learner._parameters, "has no '_parameters'"),
    ],
)
def test_what_it_lacks_says_why(use: Any, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        fm.MAML(net(), 0.3).per_task(lambda learner, x, y: use(learner))(*data())
    with pytest.raises(AttributeError, match=r"sub-modules, methods.*adapt\(\), clone\(\)"):
        fm.MAML(net(), 0.3).per_task(lambda learner, x, y: use(learner))(*data())
