"""Settings behind containers, calls, names and the process: a change counts."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from os import getenv as env
from typing import Any

import pytest
from settings import Kind, a_change_counts

VARIABLE = "FASTMAML_TEST_SETTING"


class Dummy:
    """A class of its own for each test."""

    k = 1.0


def _set(x: Any, name: str = "k") -> Callable[[], object]:
    return lambda: setattr(x, name, 3.0)


# ------------------------------------------------------------------ containers and calls


def mapping_with_slots() -> Kind:
    class Own(Mapping[str, float]):
        __slots__ = ("x",)

        def __init__(self) -> None:
            self.x = 1.0

        def __getitem__(self, key: str) -> float:
            return self.x

        def __iter__(self) -> Iterator[str]:
            return iter("x")

        def __len__(self) -> int:
            return 1

    own = Own()
    return lambda: own["x"], _set(own, "x")


def row_with_slots() -> Kind:
    @dataclasses.dataclass(slots=True)
    class Row:
        x: float = 1.0

        def __iter__(self) -> Iterator[float]:
            yield self.x

        def __len__(self) -> int:
            return 1

        def __contains__(self, x: object) -> bool:
            return x == self.x

    row = Row()
    return lambda: next(iter(row)), _set(row, "x")


def append_that_returns() -> Kind:
    class Memory(Dummy):
        def append(self, x: float) -> float:
            return self.k * x

    held = types.SimpleNamespace(memory=Memory())

    def read() -> float:
        found: float = held.memory.append(1.0)
        return found

    def change() -> None:
        other = Memory()
        other.k = 3.0
        held.memory = other

    return read, change


def append_to_what_is_no_list() -> Kind:
    class Scaling(Dummy):
        def append(self, x: list[float]) -> None:
            x[0] *= self.k

    held = types.SimpleNamespace(memory=Scaling())

    def read() -> float:
        x = [1.0]
        held.memory.append(x)
        return x[0]

    def change() -> None:
        other = Scaling()
        other.k = 3.0
        held.memory = other

    return read, change


def attribute_of_a_partial() -> Kind:
    part = functools.partial(float, 1.0)
    part.k = 1.0  # type: ignore[attr-defined]
    return lambda: part() * part.k, _set(part)  # type: ignore[attr-defined]


def state_of_a_partial() -> Kind:
    part = functools.partial(max, 1.0)
    return lambda: part(0.5), lambda: part.__setstate__((max, (3.0,), {}, {}))


# ------------------------------------------------------------------ names and the process


def name_of_a_class() -> Kind:
    class One(Dummy):
        def get(self) -> float:
            return {"One": 1.0, "Three": 3.0}[type(self).__name__]

    return One().get, lambda: setattr(One, "__name__", "Three")


def doc_of_a_function() -> Kind:
    def f() -> None:
        """1.0"""

    return lambda: float(f.__doc__ or ""), lambda: setattr(f, "__doc__", "3.0")


def annotation_of_a_function() -> Kind:
    def f() -> None: ...

    f.__annotations__["k"] = 1.0
    return lambda: f.__annotations__["k"], lambda: f.__annotations__.update(k=3.0)


def string_that_names_an_attribute() -> Kind:
    class Config(Dummy):
        pass

    config, texts = Config(), ["{0.k}"]
    return lambda: float(texts[0].format(config)), _set(config)


def in_a_thread_by_another_name() -> Kind:
    class Task(threading.Thread):
        k = found = 1.0

        def run(self) -> None:
            self.found = Task.k

    def read() -> float:
        task = Task()
        task.start()
        task.join()
        return task.found

    return read, _set(Task)


def environment_by_another_name() -> Kind:
    return lambda: float(env(VARIABLE, "1.0")), lambda: os.environ.update({VARIABLE: "3.0"})


def environment_in_a_path() -> Kind:
    os.environ[VARIABLE] = "1.0"
    return lambda: float(os.path.expandvars(f"${VARIABLE}")), lambda: os.environ.update(
        {VARIABLE: "3.0"}
    )


def variable_in_the_body_of_a_class() -> Kind:
    k = [1.0]
    scale = k[0]

    def read() -> float:
        class Local:
            value = scale

        return Local.value

    def change() -> None:
        nonlocal scale
        scale = 3.0

    return read, change


def module_exchanged() -> Kind:
    def made(k: float) -> types.ModuleType:
        module = types.ModuleType("fastmaml_test_module")
        module.k = k  # type: ignore[attr-defined]
        return module

    sys.modules["fastmaml_test_module"] = made(1.0)

    def read() -> float:
        from fastmaml_test_module import k  # type: ignore[import-not-found]

        return float(k)

    return read, lambda: sys.modules.update(fastmaml_test_module=made(3.0))


KINDS = [
    *(mapping_with_slots, row_with_slots, append_that_returns, append_to_what_is_no_list),
    *(attribute_of_a_partial, state_of_a_partial, name_of_a_class, doc_of_a_function),
    *(annotation_of_a_function, string_that_names_an_attribute, in_a_thread_by_another_name),
    *(environment_by_another_name, environment_in_a_path, variable_in_the_body_of_a_class),
    *(module_exchanged,),
]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    os.environ.pop(VARIABLE, None)
    sys.modules.pop("fastmaml_test_module", None)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_change_counts(kind: Callable[[], Kind]) -> None:
    a_change_counts(kind, "model")
