"""Settings inside objects of every make, and behind C code: a change counts."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import pickle
import string
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from settings import Kind, a_change_counts
from torch import Tensor, nn

GET = getattr
ALL_OF = vars


class Mangled:
    __slots__ = ("__k",)

    def __init__(self) -> None:
        self.__k = 1.0

    def gives(self) -> float:
        return self.__k

    def takes(self, k: float) -> None:
        self.__k = k


class Generated:
    __slots__ = (name for name in ["k"])

    def __init__(self, k: float = 1.0) -> None:
        self.k = k


class Held:
    def __init__(self, k: float = 1.0) -> None:
        self.k = k


class Counter(itertools.count):  # type: ignore[type-arg]
    pass


class Marked(Tensor):
    k: float


class Slotted:
    """Has no ``__dict__``, and an error of its own for what it lacks."""

    __slots__ = ("d",)

    def __init__(self) -> None:
        self.d = {"k": 1.0}

    def __getattr__(self, name: str) -> float:
        return self.d[name]


def _set(x: Any, name: str = "k", value: Any = 3.0) -> Callable[[], None]:
    return lambda: setattr(x, name, value)


def mangled_slot() -> Kind:
    c = Mangled()
    return c.gives, lambda: c.takes(3.0)


def generated_slot() -> Kind:
    c = Generated()
    return lambda: c.k, _set(c)


def slots_with_getattr() -> Kind:
    c = Slotted()
    return lambda: c.k, lambda: c.d.update(k=3.0)


def lines_of_a_stream() -> Kind:
    c = io.StringIO("1.0\n" * 1000)

    def change() -> None:
        c.seek(0)
        c.write("3.0\n" * 1000)
        c.seek(0)

    return lambda: float(next(c)), change


def number_of_an_iterator() -> Kind:
    c = Counter()
    seen: Iterator[int] = iter(c)
    return lambda: 1.0 if next(seen) < 1000 else 3.0, lambda: list(itertools.islice(seen, 1000))


def progress_bar() -> Kind:
    tqdm = pytest.importorskip("tqdm")
    c = tqdm.tqdm(total=10, disable=False, file=io.StringIO())
    return lambda: 1.0 + c.n, lambda: c.update(2)


def attribute_of_a_logger() -> Kind:
    c = logging.Logger("own")
    c.k = 1.0  # type: ignore[attr-defined]
    return lambda: c.k, _set(c)  # type: ignore[attr-defined]


def null_context() -> Kind:
    c = contextlib.nullcontext(1.0)

    def entered() -> float:
        with c as k:
            return k

    return entered, _set(c, "enter_result")


def template() -> Kind:
    c = string.Template("1.0")
    return lambda: float(c.template), _set(c, "template", "3.0")


def object_hung_on_torch() -> Kind:
    torch.own_object = Held()  # type: ignore[attr-defined]
    c = torch.own_object  # type: ignore[attr-defined]
    return lambda: torch.own_object.k, _set(c)  # type: ignore[attr-defined]


def namespace_in_a_dict_hung_on_torch() -> Kind:
    c = types.SimpleNamespace(k=1.0)
    torch.own_settings = {"a": c}  # type: ignore[attr-defined]
    return lambda: torch.own_settings["a"].k, _set(c)  # type: ignore[attr-defined]


def tuple_hung_on_torch() -> Kind:
    c: dict[str, float] = {"k": 1.0}
    torch.own_tuple = (c,)  # type: ignore[attr-defined]
    return lambda: torch.own_tuple[0]["k"], lambda: c.update(k=3.0)  # type: ignore[attr-defined]


def attribute_hung_on_modules() -> Kind:
    nn.Module.own_settings = Held()  # type: ignore[attr-defined]
    c = nn.Module.own_settings  # type: ignore[attr-defined]
    return lambda: nn.Module.own_settings.k, _set(c)  # type: ignore[attr-defined]


def kept_bytes() -> Kind:
    c = Held()
    return lambda: pickle.loads(pickle.dumps(c)).k, _set(c)


def dispatched() -> Kind:
    @functools.singledispatch
    def f(x: object) -> float:
        return 1.0

    return lambda: f(2), lambda: f.register(int, lambda x: 3.0)


def dispatched_to_another() -> Kind:
    @functools.singledispatch
    def f(x: object) -> float:
        return 2.0

    f.register(int, lambda x: 1.0)
    return lambda: f(2), lambda: f.register(int, lambda x: 3.0)


def attribute_of_a_tensor_of_ones_own_kind() -> Kind:
    c = torch.ones(3).as_subclass(Marked)
    c.k = 1.0
    return lambda: c.k, _set(c)


def shape_of_a_tensor_of_ones_own_kind() -> Kind:
    c = torch.ones(1, 3).as_subclass(Marked)
    return lambda: float(c.shape[0]), _set(c, "data", torch.ones(3, 3))


def attribute_of_a_parameter() -> Kind:
    c = nn.Parameter(torch.zeros(2))
    c.k = 1.0  # type: ignore[attr-defined]
    return lambda: c.k, _set(c)  # type: ignore[attr-defined]


def getattr_by_another_name() -> Kind:
    c = Held()
    return lambda: GET(c, "k"), _set(c)


def getattr_as_a_local() -> Kind:
    c = Held()

    def read() -> float:
        g = getattr
        found: float = g(c, "k")
        return found

    return read, _set(c)


def getattr_as_a_default() -> Kind:
    c = Held()

    def read(g: Any = getattr) -> Any:
        return g(c, "k")

    return read, _set(c)


def getattr_in_a_dict() -> Kind:
    c, g = Held(), {"g": getattr}
    return lambda: g["g"](c, "k"), _set(c)


def getattr_in_part() -> Kind:
    c = Held()
    g = functools.partial(getattr, c)
    return lambda: g("k"), _set(c)


def vars_by_another_name() -> Kind:
    c = Held()
    return lambda: ALL_OF(c)["k"], _set(c)


KINDS = [
    *(mangled_slot, generated_slot, slots_with_getattr, lines_of_a_stream, number_of_an_iterator),
    *(progress_bar, attribute_of_a_logger, null_context, template, object_hung_on_torch),
    *(namespace_in_a_dict_hung_on_torch, tuple_hung_on_torch, attribute_hung_on_modules),
    *(kept_bytes, dispatched, dispatched_to_another, attribute_of_a_tensor_of_ones_own_kind),
    *(shape_of_a_tensor_of_ones_own_kind, attribute_of_a_parameter, getattr_by_another_name),
    *(getattr_as_a_local, getattr_as_a_default, getattr_in_a_dict, getattr_in_part),
    *(vars_by_another_name,),
]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    for place in (torch, nn.Module):
        for name in [x for x in vars(place) if x.startswith("own_")]:
            delattr(place, name)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("where", ["loss", "model"])
def test_a_change_counts(kind: Callable[[], Kind], where: str) -> None:
    a_change_counts(kind, where)
