"""What libraries answer when code asks for a setting of the process: precision, threads, flags."""

from __future__ import annotations

import decimal
import logging
import re
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastmaml.engine.guards.guards import Guards
from fastmaml.engine.guards.sight import root

_ASKS = re.compile(r"(get|is|are|has)_\w+|get[a-z]+|\w+_enabled")
_ASKED = frozenset({"torch", "numpy", "sys"})
FLAGS = ("torch.backends", "torch._dynamo.config", "torch._inductor.config")
"""Modules whose attributes, and whose objects', are settings."""

_OF_THE_ENGINE = frozenset({"is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled"})
"""It decides these while the model runs; what is around a call is a part of a recording's kind."""

_LEVELS = frozenset({"level", "isEnabledFor", "getEffectiveLevel"})

_UNANSWERED = (TypeError, ValueError, RuntimeError, AssertionError)


def guard_answer(guards: Guards, x: Any, names: frozenset[str], label: str) -> None:
    """Of a function that code calls which reads attributes of these names, if that is one."""
    if x is decimal.getcontext or x is decimal.localcontext:
        guards.read(_decimal, "decimal's context")
    if x is logging.getLogger and names & _LEVELS:
        guards.read(_levels, "the loggers' levels")
    if not isinstance(x, types.FunctionType | types.BuiltinFunctionType):
        return
    if x.__name__ == "initial_seed" and root(x.__module__) == "torch":
        guards.read(x, f"{label}()")
    if x.__name__ in _OF_THE_ENGINE or root(x.__module__) not in _ASKED:
        return
    if _ASKS.fullmatch(x.__name__) and _answer(x) is not None:
        guards.read(partial(_answer, x), f"{label}()")


def guard_flags(guards: Guards, x: Any, names: frozenset[str], label: str) -> None:
    """Of a module of a library, or an object in one, whose attributes ask the library."""
    if not type(x).__module__.startswith(FLAGS):
        return
    for name in names:
        look = partial(getattr, x, name, None)
        if _plain(look()):
            guards.read(look, f"{label}.{name}")


def _answer(x: Callable[[], Any]) -> Any:
    """What it says; None where it wants arguments, or says more than a setting."""
    try:
        found = x()
    except _UNANSWERED:
        return None
    if isinstance(found, dict) and all(x is None or _plain(x) for x in found.values()):
        return repr(found)
    return found if _plain(found) else None


def _plain(x: Any) -> bool:
    return isinstance(x, bool | int | float | str | torch.dtype | torch.device)


def _decimal() -> tuple[Any, ...]:
    c = decimal.getcontext()
    return c.prec, c.rounding, c.Emin, c.Emax, c.clamp


def _levels() -> tuple[Any, ...]:
    manager = logging.root.manager
    own = (x.level for x in manager.loggerDict.values() if isinstance(x, logging.Logger))
    return logging.root.level, manager.disable, *own
