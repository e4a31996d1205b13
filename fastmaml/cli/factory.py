"""``module:function``: a function of the user's own that makes a `MAML` and its episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch.optim import Optimizer

from fastmaml.cli.errors import BadInputError
from fastmaml.maml import MAML
from fastmaml.training.imported import NoFunctionError, imported


def is_factory(name: str) -> bool:
    """Whether a name on the command line is meant as ``module:function``."""
    return ":" in name


class Made(NamedTuple):
    """What such a function returns.

    Attributes:
        maml: the learner.
        episodes: an `Episodes` or an iterable of them.
        optimizer: of its parameters, or None.
        test: held-out episodes, likewise; or None.
    """

    maml: MAML
    episodes: Any
    optimizer: Optimizer | None = None
    test: Any = None


def load_factory(name: str) -> Made:
    """Import a module, call one of its functions, and check what it returns.

    The module is looked for in the current folder first, then where Python looks. What the
    module or its function raises comes through as it is.

    Args:
        name: ``module:function``; the function takes no arguments and returns
            ``(maml, episodes)``, ``(maml, episodes, optimizer)`` or
            ``(maml, episodes, optimizer, test)``.

    Raises:
        BadInputError: the name, the module, the function or what it returns is not as described.
    """
    made = _function(name)()
    if not isinstance(made, tuple) or len(made) not in (2, 3, 4):
        raise BadInputError(
            f"{name}() returned {_described(made)}: return (maml, episodes), "
            "(maml, episodes, optimizer), or (maml, episodes, optimizer, test)."
        )
    maml, episodes, optimizer, test = found = Made(*made)
    if not isinstance(maml, MAML):
        raise BadInputError(
            f"{name}() returned a {type(maml).__name__} first: it has to be a fastmaml.MAML."
        )
    for what, given in (("episodes", episodes), ("test", test)):
        if not isinstance(given, Iterable) and (given is not None or what == "episodes"):
            raise BadInputError(  # an `Episodes` is an iterable too, of its tasks
                f"{name}() returned a {type(given).__name__} as {what}: it has to be a "
                "fastmaml.Episodes, or an iterable of them."
            )
    if not isinstance(optimizer, Optimizer | None):
        raise BadInputError(
            f"{name}() returned a {type(optimizer).__name__} third: it has to be a "
            "torch.optim.Optimizer, or None."
        )
    return found


def _function(name: str) -> Callable[[], Any]:
    try:
        return imported(name)
    except NoFunctionError as error:
        raise BadInputError(error) from None


def _described(made: Any) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {len(made)}"
    return f"a {type(made).__name__}"
