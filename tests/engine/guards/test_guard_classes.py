"""Settings that classes have, of any metaclass and of objects of every make: a change counts."""

from __future__ import annotations

import abc
import enum
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import pytest
import torch
from settings import Kind, a_change_counts
from torch import Tensor


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


def defaults_of_a_tuple() -> Kind:
    class Pair(NamedTuple):
        k: float = 1.0

    return lambda: Pair().k, lambda: setattr(Pair.__new__, "__defaults__", (3.0,))


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


KINDS = [
    *(class_method_of_an_abstract_class, dict_of_an_abstract_class, class_method_under_a_protocol),
    *(property_of_a_metaclass, singleton, object_made_on_the_way, tuple_made_on_the_way),
    *(defaults_of_a_tuple, string_made_on_the_way, tensor_made_on_the_way),
    *(attribute_of_a_moment_by_a_name_made_up, operator_by_another_name),
    *(class_of_another_by_inspect, registered_later, subclasses, table_of_a_string_enumeration),
    *(attribute_of_a_number, attribute_of_a_member, class_of_an_object_with_its_own),
    *(class_by_its_attribute, parent_by_super),
]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_change_counts(kind: Callable[[], Kind]) -> None:
    a_change_counts(kind, "model")
