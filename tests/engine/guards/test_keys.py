"""What stands for a setting in the key of a plan or a recording: the value, where that is all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

import fastmaml as fm
from fastmaml.engine.guards.plans import key_of
from fastmaml.gradients import FirstOrder, GradientMethod, Truncated
from fastmaml.gradients.base import MetaGradient
from fastmaml.rules import SGD, chain


@dataclass(frozen=True)
class Own(GradientMethod):
    share: float = 1.0
    inside: Any = None

    def meta_gradient(self, loop: Any, meta: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Subclass(Own):
    pass


@dataclass(frozen=True, eq=False)
class SaysEqual(Own):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@dataclass
class Open:
    share: float = 1.0


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("share",)
    share: float


@dataclass(frozen=True)
class Beside(Own):
    def holding(self, x: Any) -> Beside:
        object.__setattr__(self, "beside", x)
        return self


@dataclass(frozen=True)
class KindOfDict(dict[str, int]):
    share: float = 1.0


SAME = {
    "ours": lambda: FirstOrder(),
    "ours, nested": lambda: chain(SGD(0.1)),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_our_dataclasses_count_by_their_fields(make: Any) -> None:
    assert make() is not make()
    assert key_of(make()) == key_of(make())
    assert hash(key_of(make())) == hash(key_of(make()))


DIFFERENT = {
    "equal fields of a user's class": (Own(0.5), Own(0.5)),
    "value": (Own(0.5), Own(0.25)),
    "sign of zero": (Own(0.0), Own(-0.0)),
    "kind of number": (Own(1), Own(True)),
    "nested value": (Own(0.5, Own(0.1)), Own(0.5, Own(0.2))),
    "class": (Own(0.5), Subclass(0.5)),
    "other field": (Own(1.0, 2.0), Own(2.0, 1.0)),
    "says that it is equal": (SaysEqual(0.5), SaysEqual(0.25)),
    "ours": (Truncated(1), Truncated(2)),
    "not frozen": (Open(), Open()),
    "slots": (Slotted(1.0), Slotted(1.0)),
    "something beside its fields": (Beside().holding(1), Beside().holding(1)),
    "a kind of dict": (KindOfDict(), KindOfDict()),
    "a tensor inside": (Own(inside=torch.ones(1)), Own(inside=torch.ones(1))),
    "a list inside": (Own(inside=[1]), Own(inside=[1])),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_others_are_told_apart(pair: tuple[Any, Any]) -> None:
    one, other = pair
    assert key_of(one) == key_of(one)
    assert key_of(one) != key_of(other)


def test_methods_with_equal_fields_that_do_different_things() -> None:
    """What a method does may depend on which one it is: eagerly, and recorded."""
    ones: list[Any] = []

    @dataclass(frozen=True)
    class Chosen(GradientMethod):
        def meta_gradient(self, loop: Any, meta: Any) -> Any:
            share = 1.0 if self is ones[0] else 3.0
            found, queries = FirstOrder().meta_gradient(loop, meta)
            return MetaGradient({n: share * g for n, g in found.adapted.items()}, {}, {}), queries

    ones += [Chosen(), Chosen()]
    for executor in ("eager", None):
        maml = fm.MAML(torch.nn.Linear(2, 1), lr=0.1, loss=mse_loss, executor=executor)
        batch = fm.Batch(torch.randn(2, 3, 2), torch.randn(2, 3, 1))
        found = []
        for method in (*ones, *ones):
            maml.zero_grad()
            maml(fm.Episodes(batch, batch), gradient=method).loss.backward()
            found.append(maml.module.weight.grad.clone())
        for one, other in ((0, 1), (2, 3)):
            torch.testing.assert_close(3 * found[one], found[other])
