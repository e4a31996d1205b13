"""Settings that classes have, of any metaclass and of objects of every make: a change counts."""

from __future__ import annotations

import abc
import dataclasses
import enum
import functools
import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from os import getenv as env
from typing import Any, ClassVar, NamedTuple, Protocol

import pytest
import torch
from settings import Kind, a_change_counts
from torch import Tensor

VARIABLE = "FASTMAML_TEST_SETTING"


class Dummy:
    """A class of its own for each test."""

    k = 1.0


def _set(x: Any, name: str = "k") -> Callable[[], object]:
    return lambda: setattr(x, name, 3.0)


# ------------------------------------------------------------------ metaclasses


def class_method_of_an_abstract_class() -> Kind:
    class Config(abc.ABC):
        k = 1.0

        @abc.abstractmethod
        def run(self) -> None: ...

        @classmethod
        def get(cls) -> float:
            return cls.k

    return Config.get, _set(Config)


def dict_of_an_abstract_class() -> Kind:
    class Registry(abc.ABC):
        entries: ClassVar = {"k": 1.0}

        @abc.abstractmethod
        def run(self) -> None: ...

        @classmethod
        def get(cls) -> float:
            return cls.entries["k"]

    return Registry.get, lambda: Registry.entries.update(k=3.0)


def class_method_under_a_protocol() -> Kind:
    class Scaled(Protocol):
        def get(self) -> float: ...

    class Config(Scaled):
        k = 1.0

        @classmethod
        def value(cls) -> float:
            return cls.k

    return Config.value, _set(Config)


def property_of_a_metaclass() -> Kind:
    class Meta(type):
        k = 1.0

        @property
        def scale(cls) -> float:
            return cls.k

    class Config(metaclass=Meta):
        pass

    return lambda: Config.scale, _set(Meta)


def singleton() -> Kind:
    class Single(type):
        made: ClassVar[dict[type, Any]] = {}

        def __call__(cls, *arguments: Any) -> Any:
            return cls.made.setdefault(cls, super().__call__(*arguments))

    class Config(metaclass=Single):
        k = 1.0

        def get(self) -> float:
            return self.k

    return lambda: Config().get(), _set(Config)


# ------------------------------------------------------------------ objects of a moment


def object_made_on_the_way() -> Kind:
    class Helper(Dummy):
        def get(self) -> float:
            return self.k

    return lambda: Helper().get(), _set(Helper)


def tuple_made_on_the_way() -> Kind:
    class Pair(NamedTuple):
        x: float

        def get(self) -> float:
            return self.x * self.k  # type: ignore[attr-defined]

    Pair.k = 1.0  # type: ignore[attr-defined]
    return lambda: Pair(1.0).get(), _set(Pair)


def string_made_on_the_way() -> Kind:
    class Option(str):
        table: ClassVar = {"a": 1.0}

        def get(self) -> float:
            return self.table[str(self)]

    return lambda: Option("a").get(), lambda: Option.table.update(a=3.0)


def tensor_made_on_the_way() -> Kind:
    class Own(Tensor):
        k = 1.0

        def get(self) -> Any:
            return type(self).k

    return lambda: torch.ones(1).as_subclass(Own).get(), _set(Own)


def attribute_of_a_moment_by_a_name_made_up() -> Kind:
    class Helper(Dummy):
        def get(self, name: str) -> Any:
            return getattr(self, name)

    return lambda: Helper().get("".join(["", "k"])), _set(Helper)


def operator_by_another_name() -> Kind:
    class Weight:
        def __add__(self, other: float) -> float:
            return other

        __radd__ = __add__

    weight = Weight()
    return lambda: 1.0 + weight, lambda: setattr(Weight, "__radd__", lambda self, other: 3.0)


def class_of_another_by_inspect() -> Kind:
    class Parent(Dummy):
        pass

    class Child(Parent):
        k = 7.0

    Parent.k = 1.0
    return lambda: inspect.getmro(Child)[1].k, _set(Parent)  # type: ignore[attr-defined]


def registered_later() -> Kind:
    class Kinds(abc.ABC):
        @abc.abstractmethod
        def run(self) -> None: ...

    x = Dummy()
    return lambda: 3.0 if isinstance(x, Kinds) else 1.0, lambda: Kinds.register(Dummy)


def subclasses() -> Kind:
    class Parent(Dummy):
        pass

    class Child(Parent):
        pass

    kept: list[type] = [Child]

    def change() -> None:
        kept.append(type("Another", (Parent,), {}))

    return lambda: float(len(Parent.__subclasses__())), change


# ------------------------------------------------------------------ plain values that are more


def table_of_a_string_enumeration() -> Kind:
    class Mode(str, enum.Enum):
        A = "a"

        def get(self) -> float:
            return self.table[self.value]  # type: ignore[attr-defined,no-any-return]

    Mode.table = {"a": 1.0}  # type: ignore[attr-defined]
    return Mode.A.get, lambda: Mode.table.update(a=3.0)  # type: ignore[attr-defined]


def attribute_of_a_number() -> Kind:
    class Number(float):
        k = 1.0

    number = Number(2.0)
    number.k = 1.0
    return lambda: number.k, _set(number)


def attribute_of_a_member() -> Kind:
    class Level(enum.IntEnum):
        LOW = 1

    Level.LOW.k = 1.0  # type: ignore[attr-defined]
    return lambda: Level.LOW.k, _set(Level.LOW)  # type: ignore[attr-defined]


# ------------------------------------------------------------------ behind an own attribute


def class_of_an_object_with_its_own() -> Kind:
    class Config(Dummy):
        def __init__(self) -> None:
            self.k = 7.0

        def get(self) -> float:
            return type(self).k

    Config.k = 1.0
    return Config().get, _set(Config)


def class_by_its_attribute() -> Kind:
    class Config(Dummy):
        def __init__(self) -> None:
            self.k = 7.0

        def get(self) -> float:
            return self.__class__.k

    Config.k = 1.0
    return Config().get, _set(Config)


def parent_by_super() -> Kind:
    class Parent(Dummy):
        def k(self) -> float:  # type: ignore[override]
            return 1.0

    class Child(Parent):
        def k(self) -> float:  # type: ignore[override]
            return super().k()

    return Child().k, lambda: setattr(Parent, "k", lambda self: 3.0)


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
    *(class_method_of_an_abstract_class, dict_of_an_abstract_class, class_method_under_a_protocol),
    *(property_of_a_metaclass, singleton, object_made_on_the_way, tuple_made_on_the_way),
    *(string_made_on_the_way, tensor_made_on_the_way, table_of_a_string_enumeration),
    *(attribute_of_a_number, attribute_of_a_member, class_of_an_object_with_its_own),
    *(class_by_its_attribute, parent_by_super, mapping_with_slots, row_with_slots),
    *(append_that_returns, attribute_of_a_partial, state_of_a_partial, name_of_a_class),
    *(doc_of_a_function, environment_by_another_name, environment_in_a_path),
    *(variable_in_the_body_of_a_class, module_exchanged, attribute_of_a_moment_by_a_name_made_up),
    *(operator_by_another_name, class_of_another_by_inspect, registered_later, subclasses),
    *(append_to_what_is_no_list, annotation_of_a_function, string_that_names_an_attribute),
    *(in_a_thread_by_another_name,),
]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    os.environ.pop(VARIABLE, None)
    sys.modules.pop("fastmaml_test_module", None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_change_counts(kind: Callable[[], Kind]) -> None:
    a_change_counts(kind, "model")
