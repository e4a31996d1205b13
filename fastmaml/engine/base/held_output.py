"""Holding back what a user's function prints while it is tried out."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, final


@final
class HeldOutput(contextlib.AbstractContextManager["HeldOutput"], io.TextIOBase):
    """Collects what is printed within. `release` prints it, as an error that leaves it does."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> HeldOutput:
        self._target = sys.stdout
        self._stack.enter_context(contextlib.redirect_stdout(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        if error[0] is not None:
            self.release()

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
        if sys._getframe(1).f_globals.get("__name__") in ("pdb", "cmd"):
            return self._target.write(text)  # somebody waits for a debugger's prompt
        self._texts.append(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream that the text will go to."""
        self._target.flush()
