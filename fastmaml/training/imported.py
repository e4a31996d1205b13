"""``module:function``: a function of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


class NoFunctionError(ValueError):
    """``module:function`` names none; the message says what is missing."""


def imported(name: str) -> Callable[..., Any]:
    """The function of that name.

    The module is looked for in the current folder first, then where Python looks. What importing it
    raises comes through as it is.

    Args:
        name: ``module:function``.

    Raises:
        NoFunctionError: the name is no such name, or there is no such module or function.
    """
    place, _, called = name.partition(":")
    if not place or not called:
        raise NoFunctionError(
            f"{name!r} names no function: write module:function, such as mine:make."
        )
    if os.getcwd() not in sys.path:  # as `python -m` does; an installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise NoFunctionError(
            f"{name!r}: there is no module {error.name} in {os.getcwd()}, nor is one installed."
        ) from None
    function = getattr(module, called, None)
    if not callable(function):
        what = "has no" if function is None else "has no function"
        raise NoFunctionError(f"{name!r}: the module {place} ({module.__file__}) {what} {called}.")
    found: Callable[..., Any] = function
    return found
