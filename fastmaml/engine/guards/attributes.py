"""What objects hold where no dict shows it."""

from __future__ import annotations

import random
import types
from typing import Any

import torch

from fastmaml.engine.guards.sight import of_a_library

_OF_THE_INTERPRETER = frozenset({"__vectorcalloffset__", "__dictoffset__", "__weaklistoffset__"})
"""Where C keeps how to call an object, its dict and who refers to it: pointers, none of values."""


def content(cell: types.CellType) -> Any:
    """Of a variable that a function closes over; None where it has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:  # an empty one
        return None


def array_content(x: Any) -> tuple[Any, ...]:
    """All that there is to a numpy array."""
    return x.dtype.str, x.shape, x.strides, x.tobytes()


def own_dict(x: Any) -> dict[str, Any] | None:
    """An object's attributes; None where it has no dict, whatever its class does for those."""
    try:
        found = object.__getattribute__(x, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def slot(x: Any, name: str) -> Any:
    """An attribute that a class has a slot for; None where it has no value."""
    for each in type(x).__mro__:
        if name in each.__dict__:
            try:
                return each.__dict__[name].__get__(x)
            except AttributeError:
                return None
    return None


def slots(kind: type, every: bool) -> list[str]:
    """The names of attributes that objects of a class have without a dict.

    Args:
        kind: the class.
        every: also those that a library's class has.
    """
    own = (each for each in kind.__mro__ if every or not of_a_library(each.__module__))
    return [
        name
        for each in own
        for name, x in each.__dict__.items()
        if isinstance(x, types.MemberDescriptorType) and name not in _OF_THE_INTERPRETER
    ]


def drawn(x: Any) -> Any:
    """How far a generator of random numbers is, so that what it drew is never used twice."""
    if isinstance(x, torch.Generator):
        return x.get_state().numpy().tobytes()
    if isinstance(x, random.Random):
        return x.getstate()
    return str(getattr(getattr(x, "bit_generator", x), "state", None) or x.get_state())
