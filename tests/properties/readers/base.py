"""The commonest reader: an attribute, its use, and its changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

WIDTH = 3
Change = Callable[[float], object]
Made = tuple[Any, list[Change]]
Reader = Callable[[], Made]


def attribute(
    make: Callable[[], Any],
    use: Callable[[Any, Tensor], Tensor],
    *changes: Callable[[Any, float], object],
) -> Reader:
    """A module with ``own = make()`` that returns ``use(own, y)``; changes are given the module."""

    def reader() -> Made:
        class Reads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.own = make()

            def forward(self, y: Tensor) -> Tensor:
                return use(self.own, y)

        reads = Reads()
        return reads, [partial(change, reads) for change in changes]

    return reader


def module(make: Callable[[], nn.Module], *changes: Callable[[Any, float], object]) -> Reader:
    """A module as it is; changes are given it."""

    def reader() -> Made:
        made = make()
        return made, [partial(change, made) for change in changes]

    return reader


def replaced(value: Callable[[float], Any]) -> Callable[[Any, float], None]:
    """The attribute becomes another object."""
    return lambda m, v: setattr(m, "own", value(v))
