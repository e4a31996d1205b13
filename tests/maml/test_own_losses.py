"""The backward of a loss of one's own, which runs the meta-step again: as it was, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from outcomes import EAGER, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

HOW = {"captured": {}, "eager": EAGER}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fixed = nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False)
        self.k = 1.0
        self.register_buffer("scale", torch.ones(2))
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(self.layer(x).tanh() * self.scale * self.k) * TEACHER


TEACHER = torch.ones(2, dtype=torch.float64)

CHANGES: dict[str, Callable[[Scaled], object]] = {
    "setting": lambda model: setattr(model, "k", 3.0),
    "buffer": lambda model: model.scale.fill_(3.0),
    "frozen parameter": lambda model: model.fixed.weight.mul_(2.0),
    "tensor outside of the model": lambda model: TEACHER.mul_(1.0005),
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    TEACHER.fill_(1.0)


def maml_of(model: nn.Module, **options: Any) -> fm.MAML:
    return fm.MAML(model.double(), lr=0.3, steps=2, loss=F.mse_loss, **options)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", HOW)
def test_what_changed_in_between_is_refused(how: str, change: str) -> None:
    torch.manual_seed(0)
    model = Scaled()
    maml = maml_of(model, **HOW[how])
    for _ in range(2):
        out = maml(vectors())
        out.losses.mean().backward(retain_graph=True)
        out.losses.sum().backward()  # nothing changed: as often as one likes
    out = maml(vectors())
    CHANGES[change](model)
    with pytest.raises(RuntimeError, match=r"after maml\(episodes\)"):
        out.losses.mean().backward()
    maml.zero_grad()
    maml(vectors()).losses.mean().backward()  # the next call has what is there now
    own = [p.grad.clone() for p in maml.parameters() if p.grad is not None]
    maml.zero_grad()
    maml(vectors()).loss.backward()
    for x, p in zip(own, model.layer.parameters(), strict=True):
        torch.testing.assert_close(x, p.grad, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_outputs_that_drop_what_is_none(how: str) -> None:
    """As transformers' do: a cotangent is never given to another output."""
    file_utils = pytest.importorskip("transformers.utils")

    @dataclasses.dataclass
    class Answer(file_utils.ModelOutput):  # type: ignore[name-defined,misc]
        first: Tensor | None = None
        second: Tensor | None = None
        third: Tensor | None = None

    class Two(nn.Linear):
        def forward(self, x: Tensor) -> Answer:
            y = super().forward(x)
            return Answer(first=y, third=y.square())

    def gradient(use: Callable[[Any], Tensor], **options: Any) -> Tensor:
        torch.manual_seed(0)
        maml = fm.MAML(
            Two(3, 2).double(), lr=0.3, loss=lambda y, t: F.mse_loss(y.first, t), **options
        )
        for _ in range(2):
            maml.zero_grad()
            use(maml(vectors())).backward()
        return torch.cat([p.grad.flatten() for p in maml.parameters() if p.grad is not None])

    mean = gradient(lambda out: out.loss, **HOW[how])
    found = gradient(lambda out: out.losses.mean(), **HOW[how])
    torch.testing.assert_close(found, mean, rtol=1e-12, atol=1e-15)
    first = gradient(lambda out: out.outputs.first.square().sum(), **HOW[how])
    third = gradient(lambda out: out.outputs.third.sum(), **HOW[how])
    torch.testing.assert_close(first, third, rtol=1e-12, atol=1e-15)
    assert float(first.norm()) > 0.1


def test_what_no_guard_sees_is_refused() -> None:
    """The numbers of an array that an input shares its memory with."""
    pytest.importorskip("numpy")
    torch.manual_seed(0)
    episodes = vectors()
    array = episodes.query.inputs.numpy().copy()
    shared = fm.Episodes(
        episodes.support, fm.Batch(torch.from_numpy(array), episodes.query.targets)
    )
    out = maml_of(Scaled(), **EAGER)(shared)
    array[:] *= 3
    with pytest.raises(RuntimeError, match="which now gives"):
        out.losses.mean().backward()


def test_hooks_for_saved_tensors_are_obeyed() -> None:
    """A recording has what they gave when it was made, so that it may not be used with others."""
    torch.manual_seed(0)
    model = Scaled()
    maml, fresh = maml_of(model), maml_of(model, **EAGER)

    def gradient(maml: fm.MAML) -> Tensor:
        maml.zero_grad()
        maml(vectors()).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.layer.parameters() if p.grad is not None])

    exact = gradient(fresh)
    lossy = torch.autograd.graph.saved_tensors_hooks(lambda x: x.half(), lambda x: x.double())
    for _ in range(2):
        with lossy:
            rough = gradient(maml)
        assert 1e-6 < float((rough - exact).norm() / exact.norm()) < 1e-2
    for _ in range(3):
        torch.testing.assert_close(gradient(maml), exact, rtol=1e-12, atol=0)
    with lossy:
        torch.testing.assert_close(gradient(maml), rough, rtol=1e-12, atol=0)


def test_inside_of_torchs_transforms_it_says_where_to_go() -> None:
    torch.manual_seed(0)
    maml = maml_of(Scaled())
    learned = {n: p.detach() for n, p in maml.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(maml, parameters, (vectors(),)).loss
        return found

    with pytest.raises(RuntimeError, match=r"outside of them, and out\.loss\.backward\(\)"):
        torch.func.grad(loss)(learned)
    given = {n: p.clone().requires_grad_() for n, p in learned.items()}
    found = torch.autograd.grad(loss(given), list(given.values()))
    maml(vectors()).loss.backward()
    own = [p.grad for p in maml.parameters() if p.grad is not None]
    for x, y in zip(found, own, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=0)


def test_losses_of_nothing_are_as_they_were() -> None:
    """There is no scale to hold them against."""
    torch.manual_seed(0)
    maml = fm.MAML(Scaled().double(), lr=0.3, loss=lambda y, t: (y - y.detach()).sum())
    out = maml(vectors())
    assert not out.losses.any()
    out.losses.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in maml.parameters())


@pytest.mark.parametrize("how", HOW)
def test_episodes_that_hold_other_tensors_by_then_are_refused(how: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x + y)

    given = vectors()
    support = fm.Batch([given.support.inputs, given.support.inputs], given.support.targets)
    query = fm.Batch([given.query.inputs, given.query.inputs], given.query.targets)
    out = maml_of(Sum(), **HOW[how])(fm.Episodes(support, query))
    support.inputs[1] = support.inputs[1] * 2
    with pytest.raises(RuntimeError, match="the episodes were written to"):
        out.losses.square().mean().backward()
