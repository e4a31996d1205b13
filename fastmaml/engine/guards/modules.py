"""What a meta-step depends on in a module, whoever wrote it."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as every_module

from fastmaml.engine.guards.guards import Guards
from fastmaml.engine.guards.hidden_values import require
from fastmaml.engine.guards.namespaces import guard_class_attribute
from fastmaml.engine.guards.sight import of_a_library, root

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_ALL: tuple[dict[int, Any], ...] = tuple(vars(every_module)[f"_global{x}"] for x in _HOOKS)
_CALLED = (types.FunctionType, types.BuiltinFunctionType)
_FUNCTIONS = ("forward", "_call_impl", "__getattr__")


class Visitor(Protocol):
    """What the guards of modules need of `Dependencies`."""

    guards: Guards
    inputs: set[int]
    only_written: frozenset[str]
    _seen: set[Any]
    _wanted: dict[int, tuple[Mapping[str, Any], str, set[str], set[str]]]
    _of_classes: dict[type, Mapping[str, Any]]

    def visit(self, x: Any, names: frozenset[str] | None, label: str) -> None: ...  # noqa: D102

    def _attributes(self, x: Any, names: frozenset[str] | None, label: str) -> None: ...

    def _dict(self, x: Any, names: frozenset[str] | None, label: str) -> None: ...

    def _entries(self, of: Any, names: Any, label: str, within: Any) -> None: ...


def guard_module(to: Visitor, module: nn.Module, names: frozenset[str] | None, label: str) -> None:
    """Its class, mode, parts, hooks and settings, and whose tensors it has.

    Args:
        to: gets the guards.
        module: any.
        names: of the attributes that the user's functions read; None for the model itself.
        label: how it is called.

    Raises:
        UnguardableError: its class has an attribute `unrecorded`, which says why.
    """
    if (id(module), "module") not in to._seen:
        to._seen.add((id(module), "module"))
        _once(to, module, label)
    if names:
        own = names - _OF_EVERY_MODULE
        to._attributes(module, own, label)
        for parts in (module._modules, module._parameters, module._buffers):
            for name in own & parts.keys():
                to.visit(parts[name], names, f"{label}.{name}")


def _once(to: Visitor, module: nn.Module, label: str) -> None:
    attributes = module.__dict__
    require(getattr(type(module), "unrecorded", ""))
    to.guards.kind(module)
    to._seen.add((id(module), "kind"))
    if "every module's hooks" not in to._seen:
        to._seen.add("every module's hooks")
        to.guards.read(_of_every_module, "every module's hooks")
        for hook in _of_every_module():
            to.visit(hook, frozenset(), "a hook of every module")
    for name in _HOOKS:
        hooks = attributes.get(name)
        if hooks:
            to._dict(hooks, frozenset(), f"{label}.{name}")
        elif hooks is not None:
            to.guards.empty(hooks)
    for tensors in (module._parameters, module._buffers):
        if all(x is None or id(x) in to.inputs for x in tensors.values()):
            continue  # they are read anew at every call, and named then
        to._dict(tensors, frozenset(), label)
    if module._modules:
        to.guards.whole(module._modules, f"{label}'s modules")
        for name, inner in module._modules.items():
            to.visit(inner, None, f"{label}.{name}" if label else name)
    to.guards.items(attributes, ("training",), f"{label}.")
    kind: type = type(module)
    for name in _FUNCTIONS:
        guard_class_attribute(to, kind, name, frozenset(), f"{kind.__name__}.")
    _of_its_library(to, kind)
    if _by_names(kind):
        to._entries(attributes, ("forward",), f"{label}.", frozenset())
    else:
        _settings(to, module, label)


def _of_every_module() -> tuple[Any, ...]:
    """The hooks that a user registered for all; PyTorch's own, which count operations, look on."""
    if not any(_OF_ALL):
        return ()
    hooks = chain.from_iterable(x.values() for x in _OF_ALL)
    return tuple(x for x in hooks if not of_a_library(getattr(x, "__module__", None)))


def _of_its_library(to: Visitor, kind: type) -> None:
    """The methods of a library's layer and the functions that they call: a user may exchange both.

    Which they are, and no more: what they do is the library's.
    """
    for each in _classes(kind):
        own = to._of_classes.setdefault(each, each.__dict__)
        _note(to, own, _methods(each), f"{each.__name__}.")
        for where, names in _called(each):
            _note(to, where, names, f"{where.get('__name__')}.")


def _note(to: Visitor, of: Mapping[str, Any], names: Iterable[str], label: str) -> None:
    to._wanted.setdefault(id(of), (of, label, set(), set()))[2].update(names)


def _classes(kind: type) -> list[type]:
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return [each for each in own if of_a_library(each.__module__)]


def _methods(each: type) -> dict[str, types.FunctionType]:
    return {n: x for n, x in vars(each).items() if isinstance(x, types.FunctionType)}


@functools.lru_cache(maxsize=4096)
def _called(each: type) -> list[tuple[dict[str, Any], frozenset[str]]]:
    """Functions that a library's class may call, where they are looked up."""
    found: dict[int, tuple[dict[str, Any], set[str]]] = {}
    waiting, seen = list(_methods(each).values()), set[types.FunctionType]()
    while waiting:
        function = waiting.pop()
        seen.add(function)
        waiting += _decorated(function) - seen
        names = _names(function.__code__)
        for where in (function.__globals__, F.__dict__, torch.__dict__):
            called = {n for n in names & where.keys() if isinstance(where[n], _CALLED)}
            found.setdefault(id(where), (where, set()))[1].update(called)
            near = {x for n in called if isinstance(x := where[n], types.FunctionType)}
            waiting += [x for x in near - seen if x.__globals__ is where is not torch.__dict__]
    return [(where, frozenset(names)) for where, names in found.values()]


def _decorated(function: types.FunctionType) -> set[types.FunctionType]:
    """What decorators keep in their closures, and call."""
    waiting, found = [function], set[types.FunctionType]()
    while waiting:
        cells = (c.cell_contents for c in waiting.pop().__closure__ or () if _filled(c))
        new = {x for x in cells if isinstance(x, types.FunctionType)} - found - {function}
        found |= new
        waiting += new
    return found


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    inner = (x for x in code.co_consts if isinstance(x, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _by_names(kind: type) -> bool:
    """Whether only the user's own code reads what such a module holds."""
    for each in kind.__mro__:
        if of_a_library(each.__module__) and each is not nn.Module:
            if root(each.__module__) in ("abc", "typing", "builtins", "collections"):
                continue
            return False
    return True


def _settings(to: Visitor, module: nn.Module, label: str) -> None:
    """All that a library's own module keeps, as its code may read it."""
    deep = root(type(module).__module__) != "torch"
    kind = type(module)
    own = {
        n: x
        for n, x in module.__dict__.items()
        if n not in _OF_EVERY_MODULE and (n not in to.only_written or _read_by_a_library(kind, n))
    }
    plain = own if deep else {n: x for n, x in own.items() if _plain(x)}
    to._entries(module.__dict__, plain, f"{label}.", None)
    # A name that is new: a forward() of its own, say.
    to.guards.size(module.__dict__)


def _read_by_a_library(kind: type, name: str) -> bool:
    """Whether a method of a library's class, among those of this kind, mentions an attribute."""
    return any(
        name in function.__code__.co_names
        for each in kind.__mro__
        if of_a_library(each.__module__)
        for method in _methods(each).values()
        for function in (method, *_decorated(method))
    )


def _plain(x: Any) -> bool:
    """Whether torch's own modules do not make it anew, as lists of their tensors."""
    return not (isinstance(x, list) and x and not isinstance(x[0], bool | int | float | str))
