"""What differs from inner step to inner step, or may, is computed at each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from anil import STEPS, Body, Count, learner, same_as_whole_passes, vectors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fastmaml.engine.routing.mode import Routing
from fastmaml.engine.step.shared_passes import Kept, SharedPass
from fastmaml.gradients import FirstOrder, Unrolled
from fastmaml.gradients.base import GradientMethod


def _hooked(x: Tensor) -> Tensor:
    x = x * 1
    if x.requires_grad:
        x.register_hook(lambda g: -2 * g)
    return x


def _written_unseen(x: Tensor) -> Tensor:
    x = x * 1
    x.data.add_(1)
    return x


def _equal_calls(x: Tensor) -> Tensor:
    a, b = x.sin(), x.sin()
    b.mul_(2)
    return a + b


def _views(x: Tensor) -> Tensor:
    x = x.clone()
    first = x[..., :3]
    first.add_(1)
    return x * first.sum()


class _Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.sin(x)
    return x * y


def _transformed(x: Tensor) -> Tensor:
    return torch.func.grad(lambda z: (z * x.cos()).sin().sum())(x)


class _Counted(nn.Module):
    """Its buffer says how often it was called, which every pass begins anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("times", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.times.add_(1)
        return x * self.times


BETWEEN: dict[str, Callable[[], Any]] = {
    "in place": lambda: nn.ReLU(inplace=True),
    "dropout": lambda: nn.Dropout(0.5),
    "random": lambda: lambda x: x * torch.rand_like(x[0]),
    "random, no tensor": lambda: lambda x: x * torch.rand(6, dtype=torch.float64),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "layer norm": lambda: nn.LayerNorm(6),
    "a hook": lambda: _hooked,
    "written unseen": lambda: _written_unseen,
    "equal calls": lambda: _equal_calls,
    "views": lambda: _views,
    "a function of its own": lambda: _Cube.apply,
    "no gradient": lambda: _without_gradient,
    "a transform": lambda: _transformed,
    "a buffer": _Counted,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "several results": lambda: lambda x: x.split(3, -1)[1].repeat(1, 2) + x.max(-1, True)[0],
    "attention": lambda: nn.TransformerEncoderLayer(6, 2, 4, 0.0, batch_first=True),
    "attention, dropout": lambda: nn.TransformerEncoderLayer(6, 2, 4, 0.3, batch_first=True),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [Unrolled(), FirstOrder()], ids=str)
@pytest.mark.parametrize("name", BETWEEN)
def test_whatever_the_model_does(
    monkeypatch: pytest.MonkeyPatch, name: str, gradient: GradientMethod
) -> None:
    for chunk in (1, 3):
        torch.manual_seed(0)
        model = Body(BETWEEN[name]())
        same_as_whole_passes(monkeypatch, model, gradient, vectors(), tasks_chunk=chunk)


def test_masks_are_drawn_anew_at_every_step() -> None:
    """Dropout in the body: what comes after a mask differs from step to step."""
    maml = learner(Body(nn.Dropout(0.5)), Unrolled(), executor="eager", backend="reference")
    maml(vectors())
    with Count(torch.tanh) as tanh, Count(F.linear) as linear:
        maml(vectors())
    assert tanh.calls == STEPS + 1
    assert linear.calls == 2 + 2 * (STEPS + 1)


class _Scaled(nn.Module):
    """Writes an adapted number into a buffer, and into what no adapted parameter had reached."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = nn.Linear(5, 3), nn.Parameter(torch.tensor(0.7))
        self.register_buffer("seen", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y.mul_(self.scale)
        self.seen.mul_(self.scale.detach())
        return y.tanh() + self.seen.cos()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("chunk", [1, 3])
def test_what_an_adapted_parameter_is_written_into(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    given = (_Scaled(), Unrolled(), vectors())
    same_as_whole_passes(monkeypatch, *given, scope="scale", tasks_chunk=chunk)


# ------------------------------------------------------------------ one call, in two passes


def one_pass(kept: Kept, x: Tensor) -> SharedPass:
    return SharedPass(kept, Routing(torch.tensor(1), own_statistics=True), x)


def test_the_same_call_gives_the_same_tensor() -> None:
    kept, x = Kept(), torch.ones(2)
    with one_pass(kept, x):
        first = x * 2.0
    with one_pass(kept, x):
        assert x * 2.0 is first


@pytest.mark.parametrize("other", [3.0, 2, -2.0])
def test_a_call_with_another_number_does_not(other: float) -> None:
    kept, x = Kept(), torch.ones(2, dtype=torch.long)
    with one_pass(kept, x):
        assert (x * 2.0).is_floating_point()
    with one_pass(kept, x):
        found = x * other
    assert torch.equal(found, torch.tensor([other, other]))
    assert found.dtype == torch.tensor(other).dtype


def test_a_tensor_with_other_numbers_is_another_one() -> None:
    kept, x = Kept(), torch.ones(2)
    with one_pass(kept, x):
        before = x.cos()
    with one_pass(kept, x):
        x.mul_(2.0)
        assert not torch.equal(x.cos(), before)


def test_a_zero_has_a_sign() -> None:
    kept, x = Kept(), torch.ones(2)
    with one_pass(kept, x):
        assert not (x * 0.0).signbit().any()
    with one_pass(kept, x):
        assert (x * -0.0).signbit().all()


def test_a_result_that_was_given_a_history_is_made_anew() -> None:
    """As that of a Function's own code is, when the Function has run."""
    kept, x = Kept(), torch.ones(2)
    with one_pass(kept, x):
        first = x * 2.0
    first.requires_grad_()
    with one_pass(kept, x):
        assert not (x * 2.0).requires_grad


def test_nothing_is_kept_of_what_a_transform_runs() -> None:
    """It could be the transform's own tensor, which ends with it."""
    kept, x = Kept(), torch.ones(2)
    with one_pass(kept, x):
        found = torch.func.vmap(lambda z: z * x.cos())(torch.ones(1, 2))
    assert kept.alike
    assert torch.equal(found[0], x.cos())
    assert not any(getattr(key[0], "__name__", "") == "cos" for key in kept.made)


def test_nothing_is_kept_of_a_checkpointed_layer() -> None:
    kept, x = Kept(), torch.ones(2)
    mode = one_pass(kept, x)
    with mode, mode.routing.at(mode.routing.key, 0, keep=True):
        assert (x * 2.0).sum() == 4
    assert not kept.made
