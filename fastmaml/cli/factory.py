"""``module:function``: a function of the user's own that makes a `MAML` and its episodes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from fastmaml.maml import MAML


def is_factory(name: str) -> bool:
    """Whether a name on the command line is meant as ``module:function``."""
    return ":" in name


def load_factory(name: str) -> tuple[MAML, Any, Optimizer | None]:
    """Import a module, call one of its functions, and check what it returns.

    The module is looked for in the current folder first, then where Python looks. What the
    module or its function raises comes through as it is.

    Args:
        name: ``module:function``; the function takes no arguments and returns
            ``(maml, episodes)`` or ``(maml, episodes, optimizer)``.

    Returns:
        The `MAML`, the episodes (an `Episodes` or an iterable of them), and the optimizer or None.

    Raises:
        ValueError: the name, the module, the function or what it returns is not as described.
    """
    made = _function(name)()
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise ValueError(
            f"{name}() returned {_described(made)}: return (maml, episodes), or "
            "(maml, episodes, optimizer)."
        )
    maml, episodes, optimizer = made if len(made) == 3 else (*made, None)
    if not isinstance(maml, MAML):
        raise ValueError(
            f"{name}() returned a {type(maml).__name__} first: it has to be a fastmaml.MAML."
        )
    if not isinstance(episodes, Iterable):  # an `Episodes` is one too, of its tasks
        raise ValueError(
            f"{name}() returned a {type(episodes).__name__} as episodes: it has to be a "
            "fastmaml.Episodes, or an iterable of them."
        )
    if not isinstance(optimizer, Optimizer | None):
        raise ValueError(
            f"{name}() returned a {type(optimizer).__name__} third: it has to be a "
            "torch.optim.Optimizer, or left out."
        )
    return maml, episodes, optimizer


def _function(name: str) -> Callable[[], Any]:
    place, _, called = name.partition(":")
    if not place or not called:
        raise ValueError(f"{name!r} names no function: write module:function, such as mine:make.")
    if os.getcwd() not in sys.path:  # as `python -m` does; an installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(
            f"{name!r}: there is no module {error.name} in {os.getcwd()}, nor is one installed."
        ) from None
    function = getattr(module, called, None)
    if not callable(function):
        what = "has no" if function is None else "has no function"
        raise ValueError(f"{name!r}: the module {place} ({module.__file__}) {what} {called}.")
    found: Callable[[], Any] = function
    return found


def _described(made: Any) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {len(made)}"
    return f"a {type(made).__name__}"
