"""Errors that a command says in a paragraph, and those that keep their traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


class BadInputError(ValueError):
    """What the user asked for cannot be done; the message is a paragraph for them."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Whatever goes wrong while a run is prepared, of fastmaml's own parts, is bad input."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise BadInputError(error) from error


@contextmanager
def own_user_errors() -> Iterator[None]:
    """While the user's code runs too: a ValueError that fastmaml itself raises is about arguments.

    What the user's model, loss or episodes raise, or PyTorch in them, comes through as it is.
    """
    try:
        yield
    except ValueError as error:
        if _raised_here(error):
            raise BadInputError(error) from error
        raise


def _raised_here(error: BaseException) -> bool:
    """Whether the line that raised it is one of this package's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    return Path(trace.tb_frame.f_code.co_filename).resolve().is_relative_to(PACKAGE)
