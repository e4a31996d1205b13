"""Settings that a loss or a model reads from elsewhere: a recording never uses an old one."""

from __future__ import annotations

import argparse
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from outcomes import agree, outcome, pair, recordings, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.guards.attributes import drawn, slots
from fastmaml.engine.guards.guards import Guards

WEIGHT = 1.0
SETTINGS: dict[str, Any] = {"loss": {"weight": 1.0}}
ARGUMENTS = argparse.Namespace(weight=1.0)
TENSOR = torch.ones((), dtype=torch.float64)
CONFIG = types.ModuleType("a_users_config")
CONFIG.__dict__["weight"] = 1.0


@dataclass
class Part:
    weight: float = 1.0


class Whole:
    def __init__(self) -> None:
        self.part, self.weight = Part(), 1.0

    def weighted(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * self.part.weight * self.error(output, target)

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        return WEIGHT * F.mse_loss(output, target)


WHOLE = Whole()


def error(output: Tensor, target: Tensor) -> Tensor:
    return WEIGHT * F.mse_loss(output, target)


def reads_global(output: Tensor, target: Tensor) -> Tensor:
    return WEIGHT * F.mse_loss(output, target)


def reads_through_a_function(output: Tensor, target: Tensor) -> Tensor:
    return error(output, target)


def reads_dict(output: Tensor, target: Tensor) -> Tensor:
    return SETTINGS["loss"]["weight"] * F.mse_loss(output, target)


def reads_arguments(output: Tensor, target: Tensor) -> Tensor:
    return ARGUMENTS.weight * F.mse_loss(output, target)


def reads_tensor(output: Tensor, target: Tensor) -> Tensor:
    return TENSOR * F.mse_loss(output, target)


def reads_module(output: Tensor, target: Tensor) -> Tensor:
    return CONFIG.weight * F.mse_loss(output, target)  # type: ignore[attr-defined]


def reads_in_a_comprehension(output: Tensor, target: Tensor) -> Tensor:
    return torch.stack([WEIGHT * F.mse_loss(output, target) for _ in range(2)]).sum()


def set_global(name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(sys.modules[__name__], name, value)


LOSSES: dict[str, tuple[Any, Callable[[pytest.MonkeyPatch], None]]] = {
    "global": (reads_global, set_global("WEIGHT", 2.0)),
    "comprehension": (reads_in_a_comprehension, set_global("WEIGHT", 2.0)),
    "function's global": (reads_through_a_function, set_global("WEIGHT", 2.0)),
    "lambda's global": (lambda y, t: WEIGHT * F.mse_loss(y, t), set_global("WEIGHT", 2.0)),
    "method's global": (WHOLE.weighted, set_global("WEIGHT", 2.0)),
    "dict in a dict": (reads_dict, lambda p: p.setitem(SETTINGS["loss"], "weight", 2.0)),
    "arguments": (reads_arguments, lambda p: p.setattr(ARGUMENTS, "weight", 2.0)),
    "another tensor": (reads_tensor, set_global("TENSOR", torch.full((), 2.0, dtype=TENSOR.dtype))),
    "module": (reads_module, lambda p: p.setattr(CONFIG, "weight", 2.0)),
    "object": (WHOLE.weighted, lambda p: p.setattr(WHOLE, "weight", 2.0)),
    "object in an object": (WHOLE.weighted, lambda p: p.setattr(WHOLE.part, "weight", 2.0)),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", LOSSES)
def test_of_a_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, change = LOSSES[name]
    both = pair(lambda: nn.Linear(3, 2).double(), loss=loss)
    before = agree(*both, vectors())
    agree(*both, vectors())
    assert recordings(both[0]) == 1
    change(monkeypatch)
    after = agree(*both, vectors())
    assert not torch.equal(after.losses, before.losses)
    assert recordings(both[0]) == 2


def test_a_tensor_written_to_is_read_live() -> None:
    weight = torch.ones((), dtype=torch.float64)
    both = pair(lambda: nn.Linear(3, 2).double(), loss=lambda y, t: weight * F.mse_loss(y, t))
    agree(*both, vectors())
    weight.fill_(3.0)
    agree(*both, vectors())
    assert recordings(both[0]) == 1


class Scaled(nn.Module):
    """Reads a global, through a method; an object of its own; and keeps an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.settings = SimpleNamespace(scale=1.0)
        self.offset = torch.zeros(2, dtype=torch.float64)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [self.layer(x)]
        return self.scaled(self.kept[0]) + self.offset

    def scaled(self, y: Tensor) -> Tensor:
        return WEIGHT * self.settings.scale * y


MODELS: dict[str, Callable[[Scaled, pytest.MonkeyPatch], None]] = {
    "object": lambda m, p: setattr(m.settings, "scale", 2.0),
    "tensor": lambda m, p: setattr(m, "offset", torch.ones(2, dtype=torch.float64)),
    "method's global": lambda m, p: set_global("WEIGHT", 2.0)(p),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", MODELS)
def test_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = pair(Scaled)
    before = agree(*both, vectors())
    for _ in range(3):
        agree(*both, vectors())
    known = recordings(both[0])
    assert known <= 2  # the activations that it keeps are there from the second call on
    for maml in both:
        MODELS[name](maml.module, monkeypatch)  # type: ignore[arg-type]
    after = agree(*both, vectors())
    assert not torch.equal(after.losses, before.losses)
    assert recordings(both[0]) == known + 1


def test_circles_end_and_long_containers_are_looked_through() -> None:
    circle: dict[str, Any] = {"weight": 1.0, "long": [0.0] * 1000}
    circle["self"] = circle

    def loss(y: Tensor, t: Tensor) -> Tensor:
        return (circle["self"]["self"]["weight"] + sum(circle["long"])) * F.mse_loss(y, t)

    both = pair(lambda: nn.Linear(3, 2).double(), loss=loss)
    agree(*both, vectors())
    circle["weight"] = 2.0
    agree(*both, vectors())
    circle["long"][999] = 0.5
    agree(*both, vectors())
    assert recordings(both[0]) == 3


def test_a_function_that_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(n: int) -> float:
        return WEIGHT if n == 0 else down(n - 1)

    both = pair(lambda: nn.Linear(3, 2), loss=lambda y, t: down(9) * F.mse_loss(y, t))
    agree(*both, vectors())
    set_global("WEIGHT", 2.0)(monkeypatch)
    agree(*both, vectors())
    assert recordings(both[0]) == 2


def test_what_a_generator_of_ones_own_draws_is_not_used_twice() -> None:
    generator = pytest.importorskip("numpy").random.default_rng(0)
    maml = fm.MAML(
        nn.Linear(3, 2).double(), 0.3, loss=lambda y, t: generator.random() * (y - t).sum()
    )
    losses = [float(outcome(maml, vectors()).losses[0]) for _ in range(3)]
    assert len(set(losses)) == 3
    told = str(maml.explain(vectors()))
    assert "is read while it runs, and changes whenever it runs" in told


@pytest.mark.parametrize("kind", ["random", "numpy", "numpy.RandomState"])
def test_generators_count_by_how_far_they_are(kind: str) -> None:
    def made() -> Any:
        if kind == "random":
            return random.Random(0)
        numpy = pytest.importorskip("numpy")
        return numpy.random.default_rng(0) if kind == "numpy" else numpy.random.RandomState(0)

    guards, generator = Guards(), made()
    guards.read(partial(drawn, generator), "it")
    assert guards.hold()
    generator.random()
    assert guards.changed() == "it"


def test_how_c_calls_an_object_is_nothing_that_code_reads() -> None:
    """The pointer by which C calls a partial changes when it is called."""
    assert {"func", "args", "keywords"} <= set(slots(partial, True))
    assert not any("offset" in name for name in slots(partial, True))
