"""What is looked at or measured: beside a spinner on a terminal, in lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def telling(console: Any, first: str) -> Iterator[Callable[[str], None]]:
    """Say that while this lasts; yields a function that says what is next.

    Where the console is no terminal, lines go to stderr: what is printed at the end may be piped.
    """
    if console.is_terminal or console.is_jupyter:
        with console.status(first) as status:
            yield status.update
        return
    _say(first)
    yield _say


def _say(line: str) -> None:
    print(f"fastmaml: {line}", file=sys.stderr, flush=True)
