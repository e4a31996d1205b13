"""Holding back what a user's function prints while it is tried out."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from typing import Any, final

_LOCK = threading.Lock()
"""Held while ``sys.stdout`` changes, which all threads share."""


@final
class HeldOutput(contextlib.AbstractContextManager["HeldOutput"], io.TextIOBase):
    """Collects what is printed within. `release` prints it, as an error that leaves it does.

    What other threads print goes on to where it would have gone. Several of them may hold at the
    same time, and end in any order: each stands before the one that began before it.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []

    def __enter__(self) -> HeldOutput:
        self._thread = threading.get_ident()
        with _LOCK:
            self._target = sys.stdout
            sys.stdout = self
        return self

    def __exit__(self, *error: Any) -> None:
        with _LOCK:
            self._leave()
        if error[0] is not None:
            self.release()

    def _leave(self) -> None:
        """Take this one out of the row of those that hold."""
        one: Any = sys.stdout
        while isinstance(one, HeldOutput) and one is not self:
            if one._target is self:
                one._target = self._target
                return
            one = one._target
        sys.stdout = self._target

    @property
    def printed(self) -> bool:
        """Whether anything is held that was not released."""
        return bool(self._texts)

    def release(self) -> None:
        """Print what was held so far."""
        self._target.write("".join(self._texts))
        self._texts.clear()

    def write(self, text: str) -> int:
        """Hold `text`, and return its length, as a text file does."""
        if threading.get_ident() != self._thread:
            return self._target.write(text)
        if sys._getframe(1).f_globals.get("__name__") in ("pdb", "cmd"):
            return self._target.write(text)  # somebody waits for a debugger's prompt
        self._texts.append(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream that the text will go to."""
        self._target.flush()
