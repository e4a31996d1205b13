"""One thread at a time.

While a model runs on a task's parameters, these are in the places of its own, in the one module
that all threads see: another thread would compute with them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from fastmaml.engine.base.tensor_cores import ONE_RULE

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """A context that one thread at a time is in; others wait.

    The thread may enter it again. A copy, or what is pickled, has turns of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turns, ()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(*args, **kwargs)``, which torch.compile may look into."""
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        with self:
            return function(*args, **kwargs)


class _HasTurns(Protocol):
    _turns: Turns


S = TypeVar("S", bound=_HasTurns)


def in_turn(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that one thread at a time runs, of objects with the same `Turns`, by `ONE_RULE`."""

    @functools.wraps(method)
    def waiting(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._turns, ONE_RULE:
            return method(self, *args, **kwargs)

    return waiting
