"""Errors that a command says in a paragraph, and those that keep their traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmaml.engine.base.attempt import in_a_line, is_out_of_memory

PACKAGE = Path(__file__).resolve().parent.parent


class BadInputError(ValueError):
    """What the user asked for cannot be done; the message is a paragraph for them."""


class RunFailedError(RuntimeError):
    """What was begun cannot go on here; the message is a paragraph for the user."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Whatever goes wrong while a run is prepared, of fastmaml's own parts, is bad input."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise BadInputError(error) from error
    except (RuntimeError, MemoryError) as error:
        if not _is_too_large(error):
            raise
        raise BadInputError(_too_large(error)) from error


@contextmanager
def run_errors(again: str | None = None, folder: Path | None = None) -> Iterator[None]:
    """While a run goes on: what the machine lacks is said in a line, and how to go on.

    Args:
        again: the command that goes on from a checkpoint; None where there is none.
        folder: of the run.

    Raises:
        BadInputError: the run cannot begin in its folder.
        RunFailedError: no memory or no space is left, or a file cannot be written.
    """
    from fastmaml.training.ranks import OtherProcessError
    from fastmaml.training.run_lock import RunFolderError

    try:
        yield
    except (RunFolderError, OtherProcessError) as error:
        raise BadInputError(error) from error
    except OSError as error:
        if error.errno is None:  # no answer of the system's
            raise
        raise RunFailedError(f"{error}.{_how_to_go_on(again, folder)}") from error
    except (RuntimeError, MemoryError) as error:
        if not _is_too_large(error):
            raise
        raise RunFailedError(_too_large(error) + _how_to_go_on(again, folder)) from error


def _is_too_large(error: BaseException) -> bool:
    """Whether it asks for more memory than there is, or than can be counted."""
    counted = isinstance(error, RuntimeError) and "overflow" in str(error)
    return counted or is_out_of_memory(error)


def _too_large(error: Exception) -> str:
    said = in_a_line(error).removesuffix(":").removesuffix(".")
    return (
        f"out of memory ({said}). Choose smaller sizes, such as tasks, shots, queries or filters."
    )


def _how_to_go_on(again: str | None, folder: Path | None) -> str:
    """What is there of the run, and the command that goes on from it."""
    from fastmaml.training import checkpoint
    from fastmaml.training.run_folder import CHECKPOINT

    if again is None or folder is None:
        return ""
    try:
        saved = checkpoint.load(folder / CHECKPOINT)
    except (OSError, ValueError):
        return " Nothing was saved: start again when that is mended."
    return f" Iteration {saved.iteration} was saved; when that is mended, go on with: {again}"


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
