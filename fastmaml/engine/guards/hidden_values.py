"""Objects that keep what no attribute of theirs shows: how each kind is looked at."""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import functools
import gc
import io
import operator
import random
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from fastmaml.engine.guards.attributes import array_content, content, drawn
from fastmaml.engine.guards.guards import Guards
from fastmaml.engine.guards.library_objects import of_the_process

MAX_BYTES = 2**16
"""An array of more bytes than this is not compared at every call."""

Names = frozenset[str] | None


class UnguardableError(Exception):
    """Something is read that cannot be watched; the message says what."""


def require(nothing: str) -> None:
    """Raise UnguardableError if that says anything."""
    if nothing:
        raise UnguardableError(nothing)


class Visitor(Protocol):
    """What these ways need of `Dependencies`."""

    guards: Guards

    def visit(self, x: Any, names: Names, label: str) -> None: ...  # noqa: D102

    def _attributes(self, x: Any, names: Names, label: str) -> None: ...


_BY_NAME = (getattr, hasattr, vars, dir)

Way = Callable[[Visitor, Any, Names, str], None]


def way_to_look(x: Any) -> Way | None:
    """At such an object; None where attributes are all that it has."""
    for kinds, way in _WAYS:
        if issubclass(type(x), kinds):
            return way
    module = type(x).__module__
    if module == "numpy" and hasattr(x, "tobytes"):
        return _array
    if any(k.__module__ == "numpy" and k.__name__ == "ndarray" for k in type(x).__mro__):
        return _kind_of_array
    if module.startswith("numpy.random"):
        return _generator
    if module.startswith(("multiprocessing.managers", "multiprocessing.pool", "concurrent.")):
        return _elsewhere
    return _iterator if issubclass(type(x), Iterator) else None


def _bytes(to: Visitor, x: Any, names: Names, label: str) -> None:
    to.guards.read(functools.partial(bytes, x), label)


def _array(to: Visitor, x: Any, names: Names, label: str) -> None:
    if x.nbytes > MAX_BYTES:
        raise UnguardableError(
            f"{label} is a numpy array of {x.nbytes:,} bytes, too large to look at in every call: "
            "make it a buffer"
        )
    if x.dtype.hasobject:
        to.guards.row(x.ravel(), label)
        for y in x.ravel():
            to.visit(y, names, label)
    elif getattr(x, "ndim", 0) or hasattr(x, "flags"):
        to.guards.read(functools.partial(array_content, x), label)


def _kind_of_array(to: Visitor, x: Any, names: Names, label: str) -> None:
    """A record array, a masked one, a user's own."""
    _array(to, x, names, label)
    to._attributes(x, None, label)


def _generator(to: Visitor, x: Any, names: Names, label: str) -> None:
    if not of_the_process(x):
        to.guards.read(functools.partial(drawn, x), label)


def _stream(to: Visitor, x: io.IOBase, names: Names, label: str) -> None:
    """What is written to goes on as it is; what is read, nothing can watch."""
    if isinstance(x, io.StringIO | io.BytesIO) and not x.closed:
        to.guards.read(lambda: x.closed or (x.tell(), x.getvalue()), label)
    elif not x.closed and x.readable():
        raise UnguardableError(f"{label} is a file, and files may change")


def _iterator(to: Visitor, x: Any, names: Names, label: str) -> None:
    to._attributes(x, names, label)
    if not isinstance(type(x).__next__, types.FunctionType):
        raise UnguardableError(f"{label} is a {type(x).__name__}, whose state cannot be seen")


def _weak(to: Visitor, x: Any, names: Names, label: str) -> None:
    to.guards.read(x, label)
    to.visit(x(), names, label)


def _context(to: Visitor, x: contextvars.ContextVar[Any], names: Names, label: str) -> None:
    look = functools.partial(x.get, None)
    to.guards.read(look, label)
    to.visit(look(), names, label)


def _c_data(to: Visitor, x: Any, names: Names, label: str) -> None:
    if "pointer" in type(x).__name__.lower() or isinstance(x, ctypes._Pointer):
        raise UnguardableError(f"{label} is a pointer, and nothing tells what it points to")
    to.guards.read(functools.partial(bytes, x), label)


def _elsewhere(to: Visitor, x: Any, names: Names, label: str) -> None:
    kind = type(x).__name__
    raise UnguardableError(f"{label} is a {kind}, whose work is done in another thread or process")


def _getter(to: Visitor, x: Any, names: Names, label: str) -> None:
    kind = type(x).__name__
    raise UnguardableError(
        f"it reads through {label}, an operator.{kind}, and of what cannot be seen"
    )


def _built_in(to: Visitor, x: Any, names: Names, label: str) -> None:
    """A method bound to an object, which it reads: all that this holds."""
    if x in _BY_NAME and label != f"builtins.{x.__name__}":
        raise UnguardableError(f"{label} is {x.__name__}, and of which attributes cannot be seen")
    if not isinstance(x.__self__, types.ModuleType | type | None):
        to.visit(x.__self__, None, label)


def _partial(to: Visitor, x: functools.partial[Any], names: Names, label: str) -> None:
    to.guards.read(lambda: (x.func, x.args, x.keywords), label)
    for y in (x.func, x.args, x.keywords):
        to.visit(y, names, label)
    to._attributes(x, names, label)


def _wrapper(to: Visitor, x: Any, names: Names, label: str) -> None:
    to.visit(x.__func__, names, label)


def _property(to: Visitor, x: property, names: Names, label: str) -> None:
    """One of a function that Python can see runs where it is seen."""
    if not isinstance(x.fget, types.FunctionType):
        to.visit(x.fget, names, label)


def _cell(to: Visitor, x: types.CellType, names: Names, label: str) -> None:
    to.guards.read(functools.partial(content, x), label)
    to.visit(content(x), names, label)


def _view(to: Visitor, x: Any, names: Names, label: str) -> None:
    to.visit(x.mapping, names, label)


def _cache(to: Visitor, x: Any, names: Names, label: str) -> None:
    """What an `functools.lru_cache` remembers: a function whose result is there does not run."""
    seen = _remembered(x)
    pairs = {(id(key), id(result)) for key, result in seen}  # `seen` keeps them alive

    def still(seen: list[tuple[Any, Any]] = seen) -> bool:
        return pairs <= {(id(key), id(result)) for key, result in _remembered(x)}

    to.guards.read(still, f"what {label}() remembers")
    for _, result in seen:
        to.visit(result, None, f"{label}()")
    to.visit(x.__wrapped__, names, label)


def _remembered(cached: Any) -> list[tuple[Any, Any]]:
    """Keys and results in the cache of a function."""
    referents = gc.get_referents(cached)  # its class, ..., the cache, the function, ...
    after = next(i for i, x in enumerate(referents) if x is cached.__wrapped__)
    before, cache = referents[1 : after - 1], referents[after - 1]
    if not isinstance(cache, dict) or len(before) % 3:
        raise UnguardableError("what an lru_cache remembers cannot be seen")
    if not before:
        return list(cache.items())
    return list(zip(before[::3], before[1::3], strict=True))  # each with its link's class


_WAYS: tuple[tuple[Any, Way], ...] = (
    ((bytearray, memoryview, array.array), _bytes),
    ((torch.Generator, random.Random), _generator),
    (weakref.ref, _weak),
    (io.IOBase, _stream),
    (contextvars.ContextVar, _context),
    ((ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union, ctypes._Pointer), _c_data),
    ((operator.attrgetter, operator.methodcaller), _getter),
    ((types.BuiltinFunctionType, types.MethodWrapperType), _built_in),
    (functools.partial, _partial),
    ((staticmethod, classmethod), _wrapper),
    (property, _property),
    (types.CellType, _cell),
    ((collections.abc.KeysView, collections.abc.ValuesView, collections.abc.ItemsView), _view),
    (functools._lru_cache_wrapper, _cache),
)
