"""What the code of a meta-step depends on besides its tensors, as a key."""

from __future__ import annotations

import functools
import types
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_CONTAINERS = frozenset({tuple, list, dict})
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}


def fingerprint(x: Any) -> Any:
    """A hashable value that changes when a setting of `x` does.

    Of a module: its submodules, their modes, hooks and plain attributes (numbers, strings,
    functions, tuples, lists and dicts of them); of a function: its code, defaults and what it
    closes over; of a dataclass: its fields; of another object: its plain attributes. Tensors count
    by identity, as their values are read at every run. What a function reads from global variables
    is not seen.
    """
    if type(x) in _PLAIN:
        return type(x), x
    if isinstance(x, nn.Module):
        return tuple(module_settings(m) for m in x.modules())
    if isinstance(x, tuple | list):
        return tuple(fingerprint(y) for y in x)
    if isinstance(x, functools.partial):
        return fingerprint((x.func, x.args, tuple(sorted(x.keywords.items()))))
    if isinstance(x, types.MethodType):
        return x.__func__, fingerprint(x.__self__)
    if isinstance(x, types.FunctionType):
        cells = tuple(
            fingerprint(cell.cell_contents) for cell in x.__closure__ or () if _full(cell)
        )
        by_name = tuple(sorted((x.__kwdefaults__ or {}).items()))
        return x.__code__, fingerprint((x.__defaults__, by_name)), cells
    if is_dataclass(x) and not isinstance(x, type):
        return type(x), tuple(fingerprint(getattr(x, f.name)) for f in fields(x))
    return type(x), id(x), _settings(getattr(x, "__dict__", {}))


def _full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def module_settings(module: nn.Module) -> tuple[Any, ...]:
    """One module's without its submodules'."""
    found: list[Any] = [type(module), id(module), _settings(module.__dict__)]
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        if hooks := module.__dict__[name]:
            found.append((name, tuple(hooks)))
    return tuple(found)


def _settings(attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Those attributes that are plain."""
    found: list[Any] = []
    for name, value in attributes.items():
        if name in _OF_EVERY_MODULE:
            continue
        if type(value) in _PLAIN or isinstance(value, _FUNCTIONS):
            found.append((name, type(value), value))
        elif type(value) in _CONTAINERS and (plain := _plain(value)) is not None:
            found.append((name, plain))
    return tuple(found)


def _plain(x: Any) -> Any:
    """A container of plain values, as a tuple; None if anything else is in it."""
    if type(x) in _PLAIN or isinstance(x, _FUNCTIONS):
        return type(x), x
    if type(x) not in _CONTAINERS:
        return None
    inner = tuple([_plain(y) for y in (x.items() if type(x) is dict else x)])
    return None if None in inner else (type(x), inner)


def autocast_state(device: str) -> tuple[bool, torch.dtype]:
    """Whether and to what dtype operations are cast."""
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
