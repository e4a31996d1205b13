"""What the code of a meta-step depends on besides its tensors, as a key."""

from __future__ import annotations

import functools
import random
import sys
import types
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.engine.code_names import code_names

_PLAIN = frozenset(
    {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
)
_CONTAINERS = frozenset({tuple, list, dict})
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}
_OF_MODULES = frozenset(dir(nn.Module)) - {"forward"}
_MACHINERY = frozenset({"torch", "numpy", "fastmaml"})
_LIBRARIES = _MACHINERY | {"transformers", "peft", "torchvision", "timm"}

LONG = 256
"""Containers of more entries than this count by identity: to look through them costs too much."""

DEEP = 4
"""Objects inside of objects are looked into as far as this."""


def fingerprint(x: Any) -> Any:
    """A hashable value that changes when a setting of `x` does.

    Of a module: its submodules, their modes, hooks and attributes, and what their ``forward`` reads
    from outside; of a function: its code, defaults, what it closes over, and the global variables
    and functions that it reads, as far as they are the user's own; of a dataclass: its fields; of
    another object: its attributes. Numbers, strings and small containers count by value, tensors by
    identity, as their values are read at every run, generators by how far they are. Not seen: what
    a library reads, attributes of objects without ``__dict__``, and containers longer than `LONG`
    that change in place.
    """
    return Look().of(x)


class Look:
    """One look at everything; an object is entered once, so that circles end.

    Several modules of one model are looked at with one of these: see `module`.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # an address must not be used again meanwhile

    def of(self, x: Any, depth: int = 0) -> Any:
        """What stands for `x`."""
        kind = type(x)
        if kind in _PLAIN:
            return kind, x
        if isinstance(x, Tensor):
            return kind, None if _left_behind(x) else id(x)
        if isinstance(x, type | types.BuiltinFunctionType | types.ModuleType):
            return kind, id(x)
        known = self._seen.get(id(x))
        if known is not None:
            return "seen", known
        self._seen[id(x)] = len(self._alive)
        self._alive.append(x)
        if isinstance(x, types.FunctionType):
            return self._function(x, depth)
        if isinstance(x, types.MethodType):
            method = self._method(x.__func__, type(x.__self__), depth)
            return method, self.of(x.__self__, depth)
        if isinstance(x, nn.Module):
            return tuple([self.module(m) for m in x.modules()])
        if isinstance(x, functools.partial):
            return self.of((x.func, x.args, x.keywords), depth)
        if kind in _CONTAINERS:
            return self._container(x, depth)
        return self._object(x, depth)

    def module(self, module: nn.Module) -> tuple[Any, ...]:
        """What stands for one module without its submodules."""
        kind = type(module)
        # What else torch's own modules keep (flattened weights, say) follows from their tensors.
        deep = _root(kind.__module__) != "torch"
        found: list[Any] = [kind, id(module), self._settings(module.__dict__, 1, deep)]
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            if hooks := module.__dict__[name]:
                found.append((name, tuple(hooks)))
        if not _of_a_library(kind.__module__):
            found.append(self._method(kind.forward, kind, 1))
        return tuple(found)

    def _function(self, function: types.FunctionType, depth: int) -> Any:
        """Its code, defaults, cells, and what it reads from its module."""
        users_own = not _of_a_library(function.__globals__.get("__name__"))
        if not users_own and not function.__closure__:
            return function
        found: list[Any] = [function.__code__]
        if function.__defaults__ or function.__kwdefaults__:
            found.append(self.of((function.__defaults__, function.__kwdefaults__), depth))
        for cell in function.__closure__ or ():
            if _full(cell):
                found.append(self.of(cell.cell_contents, depth))
        if users_own and depth < DEEP:
            found += self._from_globals(function, depth + 1)
        return tuple(found)

    def _method(self, function: Any, kind: type, depth: int) -> Any:
        """A method's, and those of the methods of its class that it calls."""
        if not isinstance(function, types.FunctionType) or id(function) in self._seen:
            return None
        found = [self.of(function, depth)]
        if not _of_a_library(kind.__module__) and depth < DEEP:
            for name in code_names(function.__code__).of_attributes:
                if name in _OF_MODULES:
                    continue
                found.append(self._method(getattr(kind, name, None), kind, depth + 1))
        return tuple([x for x in found if x is not None])

    def _from_globals(self, function: types.FunctionType, depth: int) -> Iterable[Any]:
        """The user's variables, functions and objects that the code names."""
        names, own = code_names(function.__code__), function.__globals__
        for name in names.of_globals:
            if name not in own:
                continue
            value = own[name]
            if not isinstance(value, types.ModuleType):
                yield name, self.of(value, depth)
            elif not _of_a_library(value.__name__):  # such as config.rate
                of_module = value.__dict__
                for attribute in names.of_attributes:
                    if attribute in of_module:
                        yield name, attribute, self.of(of_module[attribute], depth)

    def _container(self, x: Any, depth: int) -> Any:
        if len(x) > LONG or depth > DEEP:
            return type(x), id(x), len(x)
        entries = x.items() if type(x) is dict else x
        return type(x), tuple([self._entry(y, depth) for y in entries])

    def _entry(self, x: Any, depth: int) -> Any:
        # An entry of a dict is a pair that is made here: it cannot be known by its address.
        if type(x) is tuple and len(x) <= LONG:
            return tuple([self._entry(y, depth) for y in x])
        return self.of(x, depth + 1)

    def _object(self, x: Any, depth: int) -> Any:
        kind = type(x)
        if is_dataclass(x):
            return kind, tuple([self.of(getattr(x, f.name), depth + 1) for f in fields(x)])
        found: list[Any] = [kind, id(x), _drawn(x)]
        if depth < DEEP and not _opaque(kind):
            found.append(self._settings(getattr(x, "__dict__", {}), depth + 1))
            call = getattr(kind, "__call__", None)  # noqa: B004  # its code is wanted
            found.append(self._method(call, kind, depth + 1))
        return tuple(found)

    def _settings(
        self, attributes: dict[str, Any], depth: int, deep: bool = True
    ) -> tuple[Any, ...]:
        """The attributes, but for parts of a module, which its inventory holds."""
        found: list[Any] = []
        for name, value in attributes.items():
            kind = type(value)
            if name in _OF_EVERY_MODULE:
                continue
            if kind in _PLAIN:
                found.append((name, kind, value))
            elif (deep or _plain(value)) and not isinstance(value, nn.Module):
                found.append((name, self.of(value, depth)))
        return tuple(found)


def _plain(x: Any) -> bool:
    """Whether it is a function, or holds numbers and strings alone."""
    if type(x) in _CONTAINERS:
        return all(type(y) in _PLAIN or _plain(y) for y in (x.values() if type(x) is dict else x))
    return isinstance(x, types.FunctionType | types.BuiltinFunctionType | types.MethodType)


def _drawn(x: Any) -> Any:
    """How far a generator of random numbers is, so that what it drew is never used twice."""
    if isinstance(x, random.Random):
        return x.getstate()
    if type(x).__module__.startswith("numpy.random"):  # a Generator, or a RandomState
        return str(getattr(getattr(x, "bit_generator", x), "state", None) or x.get_state())
    return None


def _left_behind(x: Tensor) -> bool:
    """Whether a run made it, as an activation that a model keeps: it says nothing of the next."""
    return x.grad_fn is not None or torch._C._functorch.is_functorch_wrapped_tensor(x)


@functools.lru_cache(maxsize=4096)
def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]


@functools.lru_cache(maxsize=4096)
def _of_a_library(module: str | None) -> bool:
    """Whether code of this module reads no variables of the user's."""
    root = _root(module)
    return root in _LIBRARIES or root in sys.stdlib_module_names


def _opaque(kind: type) -> bool:
    """Whether such objects are machinery, as locks, loggers, generators and modules of Python."""
    root = _root(kind.__module__)
    machinery = root in _MACHINERY or root in sys.stdlib_module_names
    return machinery and kind.__name__ not in ("SimpleNamespace", "Namespace")


def _full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def autocast_state(device: str) -> tuple[bool, torch.dtype]:
    """Whether and to what dtype operations are cast."""
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
