"""Classes and modules: where names are looked up that an object has not."""

from __future__ import annotations

import abc
import types
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from torch import nn

from fastmaml.engine.guards.answers import FLAGS, guard_answer, guard_flags
from fastmaml.engine.guards.guards import Guards
from fastmaml.engine.guards.hidden_values import Names, require
from fastmaml.engine.guards.library_objects import PARTS_OF_LIBRARIES
from fastmaml.engine.guards.outside_world import about_call
from fastmaml.engine.guards.sight import of_a_library, of_function_class, root

_SAYINGS = frozenset({"__name__", "__qualname__", "__doc__", "__module__"})
_OF_NO_USER = frozenset({"torch", "builtins", "abc", "typing"})


class Visitor(Protocol):
    """What the guards of namespaces need of `Dependencies`."""

    guards: Guards
    _wanted: dict[int, tuple[Mapping[str, Any], str, set[str], set[str]]]
    _of_classes: dict[type, Mapping[str, Any]]

    def visit(self, x: Any, names: Names, label: str) -> None: ...  # noqa: D102

    def _entries(
        self, of: Mapping[str, Any], names: Iterable[str], label: str, within: Names
    ) -> None: ...


def guard_module_names(to: Visitor, x: types.ModuleType, names: Names, label: str) -> None:
    """What a Python module holds under these names."""
    own = x.__dict__
    if not of_a_library(x.__name__):
        if names is None:
            names = frozenset(n for n in own if not n.startswith("__"))
            names -= {n for n in names if isinstance(own[n], types.ModuleType)}
        to._entries(own, names | own.keys() & {"__getattr__"}, f"{label}.", names)
        return
    # What a library has under a name may be exchanged; what it holds is its own, or a user's.
    names = names or frozenset()
    there = [name for name in names if name in own]
    guard_flags(to.guards, x, names, label)
    for name in there:
        require(about_call(own[name], names))
        guard_answer(to.guards, own[name], names, f"{label}.{name}")
        flags = isinstance(own[name], types.ModuleType) and own[name].__name__.startswith(FLAGS)
        if flags or not isinstance(own[name], PARTS_OF_LIBRARIES):
            to.visit(own[name], names, f"{label}.{name}")
    to._wanted.setdefault(id(own), (own, f"{label}.", set(), set()))[2].update(there)


def guard_class(to: Visitor, x: type, names: Names, label: str) -> None:
    """What a class, and its class of classes, say under these names, and what it is made of."""
    if not of_a_library(x.__module__):
        to.guards.bases(x)
        guard_sayings(to, x, names, label)
        if isinstance(x, abc.ABCMeta):  # what counts as an instance, besides
            to.guards.read(abc.get_cache_token, f"the classes registered with {label}")
        if "_field_defaults" in x.__dict__:  # a named tuple, whose code is none of the user's
            to.guards.read(partial(_defaults, x), f"the defaults of {label}")
        if names is not None and "__subclasses__" in names:
            to.guards.read(lambda: tuple(x.__subclasses__()), f"the subclasses of {label}")
    for name in own_names(x) if names is None else names:
        guard_class_attribute(to, x, name, names, f"{x.__name__}.")
        if type(x) is not type:  # where what the class lacks is looked up
            guard_class_attribute(to, type(x), name, names, f"{type(x).__name__}.")
    for function in of_function_class(x):
        to.visit(function, names, label)


def guard_class_attribute(to: Visitor, kind: type, name: str, within: Names, label: str) -> None:
    """Where a name is looked up in classes, up to where it is found."""
    for each in kind.__mro__:
        if root(each.__module__) in _OF_NO_USER and (each is nn.Module or name != "forward"):
            if name not in each.__dict__:
                continue  # a user's class may come after it
            if hasattr(each.__dict__[name], "__get__"):
                return
        own = _dict_of(to, each)
        to._entries(own, (name,), label, within)
        if name in own:
            return


def _defaults(kind: type) -> Any:
    return getattr(kind.__new__, "__defaults__", None)


def _dict_of(to: Visitor, kind: type) -> Mapping[str, Any]:
    """A class's own entries, of which none is to come or to go."""
    if kind not in to._of_classes:
        to._of_classes[kind] = kind.__dict__  # another proxy at each asking
        if not of_a_library(kind.__module__):
            to.guards.size(to._of_classes[kind])  # a new __bool__, say
    return to._of_classes[kind]


def guard_sayings(to: Visitor, x: Any, names: Names, label: str) -> None:
    """What a function or a class says of itself, for code that asks."""
    for name in _SAYINGS if names is None else _SAYINGS & names:
        to.guards.read(partial(getattr, x, name), f"{label}.{name}")
    if names is not None and "__annotations__" in names:
        to.visit(getattr(x, "__annotations__", None), None, f"{label}'s annotations")


def guard_special_methods(to: Visitor, kind: type) -> None:
    """Those of a user's class, which syntax and C code look up by names that no code shows."""
    for each in kind.__mro__:
        if of_a_library(each.__module__):
            continue
        own = _dict_of(to, each)
        special = {n for n, x in own.items() if n.startswith("__") and n.endswith("__")}
        special = {n for n in special if isinstance(own[n], types.FunctionType)}
        to._wanted.setdefault(id(own), (own, f"{each.__name__}.", set(), set()))[2].update(special)


def guard_every_class(to: Visitor, kind: type, names: Iterable[str]) -> None:
    """What each class says under these names, for code that asks one of them and no object."""
    for each in kind.__mro__:
        if not of_a_library(each.__module__):
            own = _dict_of(to, each)
            to._entries(own, names, f"{each.__name__}.", frozenset(names))


def own_names(kind: type) -> frozenset[str]:
    """What the user's own classes say, for code that makes names up."""
    own = (each for each in kind.__mro__ if not of_a_library(each.__module__))
    return frozenset(n for each in own for n in each.__dict__ if not n.startswith("__"))
