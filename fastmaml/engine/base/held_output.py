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
    same time, and end in any order: each stands before the one that began before it. Where another
    thread has put something else in the place of ``sys.stdout`` meanwhile (`redirect_stdout`), that
    stays; it may put this one back later, which then only passes on.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []

    def __enter__(self) -> HeldOutput:
        self._thread, self._left = threading.get_ident(), False
        with _LOCK:
            self._target: Any = sys.stdout
            while isinstance(self._target, HeldOutput) and self._target._left:
                self._target = self._target._target  # what only passes on need not come back
            sys.stdout = self
        return self

    def __exit__(self, *error: Any) -> None:
        with _LOCK:
            self._leave()
        if error[0] is not None:
            self.release()

    def _leave(self) -> None:
        """Take this one out of the row of those that hold, if it stands there."""
        self._left = True
        one: Any = sys.stdout
        if one is self:
            sys.stdout = self._target
        while isinstance(one, HeldOutput) and one is not self:
            if one._target is self:
                one._target = self._target
                return
            one = one._target

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
        if self._left or threading.get_ident() != self._thread:
            return self._passed_on(text)
        if sys._getframe(1).f_globals.get("__name__") in ("pdb", "cmd"):
            return self._passed_on(text)  # somebody waits for a debugger's prompt
        self._texts.append(text)
        return len(text)

    def _passed_on(self, text: str) -> int:
        written: int = self._target.write(text)
        return written

    def isatty(self) -> bool:
        """Whether it passes on to a terminal; not while it holds."""
        return self._left and bool(self._target.isatty())

    def fileno(self) -> int:
        """The file that it passes on to; there is none while it holds."""
        return int(self._target.fileno()) if self._left else super().fileno()

    def flush(self) -> None:
        """Flush the stream that the text will go to."""
        self._target.flush()
