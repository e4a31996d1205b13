"""What the code of a meta-step depends on besides its tensors, as a key."""

from __future__ import annotations

import functools
import types
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})


def fingerprint(x: Any) -> Any:
    """A hashable value that changes when a setting of `x` does.

    Of a module: its submodules, their modes, hooks and plain attributes (numbers, strings, tuples
    of them); of a function: its code, defaults and the plain values that it closes over; of a
    dataclass: its fields. Tensors count by identity, as their values are read at every run. What a
    function reads from global variables is not seen.
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
        return x.__code__, fingerprint(x.__defaults__), cells
    if is_dataclass(x) and not isinstance(x, type):
        return type(x), tuple(fingerprint(getattr(x, f.name)) for f in fields(x))
    return type(x), id(x)


def _full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def module_settings(module: nn.Module) -> tuple[Any, ...]:
    """One module's without its submodules'."""
    found: list[Any] = [type(module), id(module)]
    for name, value in module.__dict__.items():
        kind = type(value)
        if kind in _PLAIN or (kind is tuple and all(type(v) in _PLAIN for v in value)):
            found.append((name, value))
        elif value and name in ("_forward_hooks", "_forward_pre_hooks"):
            found.append(tuple(value))
    return tuple(found)


def autocast_state(device: str) -> tuple[bool, torch.dtype]:
    """Whether and to what dtype operations are cast."""
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
