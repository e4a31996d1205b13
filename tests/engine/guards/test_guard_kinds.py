"""Where a setting may hide from the names in the code: a change counts, or nothing is recorded."""

from __future__ import annotations

import builtins
import collections
import configparser
import contextvars
import ctypes
import dataclasses
import enum
import functools
import importlib
import multiprocessing
import operator
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import Kind, a_change_counts
from torch import nn
from torch.nn import functional as F

KEY, SCALE = "k", 1.0
GETS_K = operator.attrgetter("k")


class Held:
    hidden = property(operator.attrgetter("k"))

    def __init__(self, k: float = 1.0) -> None:
        self.k = k


@dataclasses.dataclass
class Positional:
    name: str = "a"
    k: float = 1.0


class Level(enum.Enum):
    LOW = types.SimpleNamespace(k=1.0)


MADE = dataclasses.make_dataclass("MADE", [("k", float, 1.0)], slots=True)


def _set(x: Any, value: float = 3.0) -> Callable[[], None]:
    return lambda: setattr(x, "k", value)


def _matched(c: Any) -> float:
    match c:
        case Positional(_, k):
            return k
    return 0.0


def _matched_by_name(c: Any) -> float:
    match c:
        case Positional(name="a"):
            return 1.0
    return 3.0


def matched() -> Kind:
    c = Positional()
    return lambda: _matched(c), _set(c)


def matched_by_name() -> Kind:
    c = Positional()
    return lambda: _matched_by_name(c), lambda: setattr(c, "name", "b")


def getattr_with_a_default() -> Kind:
    c = Held()
    return lambda: getattr(c, KEY, "none"), _set(c)


def getattr_of_an_entry() -> Kind:
    c = {"a": Held()}
    return lambda: getattr(c["a"], KEY), _set(c["a"])


def getter_made_elsewhere() -> Kind:
    c = Held()
    return lambda: GETS_K(c), _set(c)


def getter_as_property() -> Kind:
    c = Held()
    return lambda: c.hidden, _set(c)


def bound_get() -> Kind:
    d = {"k": 1.0}
    get = d.get
    return lambda: get("k"), lambda: d.update(k=3.0)


def format_string() -> Kind:
    c = Held()
    return lambda: float("{.k}".format(c)), _set(c)  # noqa: UP032


def object_in_a_list() -> Kind:
    c = [Held()]
    return lambda: _first(c), _set(c[0])


def _first(c: Any) -> Any:
    return next(iter(c)).k


def object_in_a_set() -> Kind:
    c = {Held()}
    return lambda: _first(c), _set(next(iter(c)))


def object_in_a_deque() -> Kind:
    c = collections.deque([Held()])
    return lambda: _first(c), _set(c[0])


def object_in_containers() -> Kind:
    c = {"a": [({"b": Held()},)]}
    return lambda: _deep(c), _set(c["a"][0][0]["b"])


def _deep(c: Any) -> Any:
    return c["a"][0][0]["b"].k


def object_in_a_namespace() -> Kind:
    c = types.SimpleNamespace(inner=Held())
    return lambda: _inner(c), _set(c.inner)


def _inner(c: Any) -> Any:
    return c.inner.k


def made_dataclass() -> Kind:
    c = MADE()
    return lambda: c.k, _set(c)


def enumeration() -> Kind:
    Level.LOW.value.k = 1.0
    return lambda: Level.LOW.value.k, _set(Level.LOW.value)


def user_dict() -> Kind:
    c = collections.UserDict(k=1.0)
    return lambda: c["k"], lambda: c.update(k=3.0)


def chain_map() -> Kind:
    own = {"k": 1.0}
    c = collections.ChainMap({}, own)
    return lambda: c["k"], lambda: own.update(k=3.0)


def weak_dict() -> Kind:
    key = Held()
    c = weakref.WeakKeyDictionary({key: 1.0})
    return lambda: c[key], lambda: c.update({key: 3.0})


def context_variable() -> Kind:
    c = contextvars.ContextVar("c", default=1.0)
    return c.get, lambda: c.set(3.0)


def thread_local() -> Kind:
    c = threading.local()
    c.k = 1.0
    return lambda: c.k, _set(c)


def event() -> Kind:
    c = threading.Event()
    return lambda: 3.0 if c.is_set() else 1.0, c.set


def configuration() -> Kind:
    c = configparser.ConfigParser()
    c.read_string("[loss]\nk = 1.0\n")
    return lambda: c.getfloat("loss", "k"), lambda: c.set("loss", "k", "3.0")


def shared_value() -> Kind:
    c = multiprocessing.Value("d", 1.0)
    return lambda: c.value, lambda: setattr(c, "value", 3.0)


def c_array() -> Kind:
    c = (ctypes.c_double * 2)(1.0, 0.0)
    return lambda: c[0], lambda: c.__setitem__(0, 3.0)


def scheduler() -> Kind:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    c = torch.optim.lr_scheduler.StepLR(optimizer, 1, 3.0)

    def change() -> None:
        optimizer.step()
        c.step()

    return lambda: c.get_last_lr()[0], change


def optimizer() -> Kind:
    c = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return lambda: c.state_dict()["param_groups"][0]["lr"], lambda: c.param_groups[0].update(lr=3.0)


def distribution() -> Kind:
    one = torch.ones((), dtype=torch.float64)
    c = torch.distributions.Normal(one, one, validate_args=False)
    return lambda: c.mean, lambda: setattr(c, "loc", 3 * one)


def wrapped() -> Kind:
    k = 1.0

    @functools.wraps(F.mse_loss)
    def weight() -> float:
        return k

    def change() -> None:
        nonlocal k
        k = 3.0

    return weight, change


def remembered() -> Kind:
    @functools.lru_cache
    def settings() -> dict[str, float]:
        return {"k": 1.0}

    settings()
    return lambda: settings()["k"], lambda: settings().update(k=3.0)


def remembered_and_cleared() -> Kind:
    c = Held()

    @functools.lru_cache(maxsize=4)
    def weight(of: int) -> float:
        return c.k

    weight(0)

    def change() -> None:
        c.k = 3.0
        weight.cache_clear()

    return lambda: weight(0), change


def system_module() -> Kind:
    return lambda: sys.modules[__name__].SCALE, _scale  # type: ignore[attr-defined]


def imported_by_name() -> Kind:
    return lambda: importlib.import_module(__name__).SCALE, _scale


def _scale() -> None:
    globals()["SCALE"] = 3.0


def built_in() -> Kind:
    vars(builtins)["built_in_k"] = 1.0
    return lambda: built_in_k, lambda: vars(builtins).update(built_in_k=3.0)  # type: ignore[name-defined]  # noqa: F821


def file_that_is_there() -> Kind:
    path = Path(tempfile.mkdtemp()) / "flag"
    return lambda: 1.0 if not path.exists() else 3.0, path.touch


def arguments() -> Kind:
    return lambda: 3.0 if "--three" in sys.argv else 1.0, lambda: sys.argv.append("--three")


def on_a_library() -> Kind:
    torch.own_settings = {"k": 1.0}  # type: ignore[attr-defined]
    return (
        lambda: torch.own_settings["k"],  # type: ignore[attr-defined]
        lambda: torch.own_settings.update(k=3.0),  # type: ignore[attr-defined]
    )


def tensor_attribute() -> Kind:
    c = torch.zeros(2)
    c.k = 1.0  # type: ignore[attr-defined]
    return lambda: c.k, _set(c)  # type: ignore[attr-defined]


def tensor_prefix() -> Kind:
    c = torch.zeros(1, 3, dtype=torch.float64)[0]
    return lambda: float(c.shape[0]), lambda: c.resize_(2)


def array_of_objects() -> Kind:
    numpy = pytest.importorskip("numpy")
    c = numpy.array([None, {"k": 1.0}], dtype=object)
    return lambda: c[1]["k"], lambda: c[1].update(k=3.0)


def record_array() -> Kind:
    numpy = pytest.importorskip("numpy")
    c = numpy.rec.array([(1.0, 2)], dtype=[("k", float), ("n", int)])
    return lambda: float(c.k[0]), lambda: c.k.__setitem__(0, 3.0)


def masked_array() -> Kind:
    numpy = pytest.importorskip("numpy")
    c = numpy.ma.array([1.0, 3.0], mask=[False, True])
    return lambda: float(c.sum()), lambda: c.mask.__setitem__(1, False)


def bases() -> Kind:
    one = type("One", (), {"k": 1.0})
    three = type("Three", (), {"k": 3.0})
    c = type("C", (one,), {})
    return lambda: c().k, lambda: setattr(c, "__bases__", (three,))


def truth() -> Kind:
    kind = type("Truthful", (), {})
    c = kind()
    return lambda: 1.0 if c else 3.0, lambda: setattr(kind, "__bool__", lambda self: False)


KINDS = [
    *(matched, matched_by_name, getattr_with_a_default, getattr_of_an_entry, getter_made_elsewhere),
    *(getter_as_property, bound_get, format_string, object_in_a_list, object_in_a_set),
    *(object_in_a_deque, object_in_containers, object_in_a_namespace, made_dataclass, enumeration),
    *(user_dict, chain_map, weak_dict, context_variable, thread_local, event),
    *(configuration, shared_value, c_array, scheduler, optimizer, distribution, wrapped),
    *(remembered, remembered_and_cleared, system_module, imported_by_name, built_in),
    *(file_that_is_there, arguments, on_a_library, tensor_attribute, tensor_prefix),
    *(array_of_objects, record_array, masked_array, bases, truth),
]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 1.0)
    monkeypatch.setattr(sys, "argv", ["it"])


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("where", ["loss", "model"])
def test_a_change_counts(kind: Callable[[], Kind], where: str) -> None:
    a_change_counts(kind, where)
