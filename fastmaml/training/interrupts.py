"""Stopping between two iterations when the user or the system asks for it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; training, at a point where its state is whole.

    Attributes:
        signal: its number (SIGINT or SIGTERM); a program then exits with 128 + signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class InterruptGuard:
    """While entered, SIGINT (Ctrl-C) and SIGTERM are noted, and `check` raises `Interrupted`.

    A second signal acts at once, as it would have without the guard. Outside the main thread,
    where Python handles no signals, nothing is noted.

    Args:
        notice: called with the signal's name when it arrives.
        at_once: whether to raise `Interrupted` there and then, as Ctrl-C does without a guard, by
            the signal's number: where what is going on can be given up.
        once: whether a second signal acts at once; else it says what the first one did.
    """

    def __init__(
        self,
        notice: Callable[[str], None] = lambda name: None,
        at_once: Callable[[int], bool] = lambda number: False,
        once: bool = True,
    ) -> None:
        self._notice, self._at_once, self._once = notice, at_once, once
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    @property
    def received(self) -> int | None:
        """The number of the signal that has arrived."""
        return self._received

    @property
    def exit_code(self) -> int:
        """Of a program that was interrupted: 128 and the signal's number, SIGINT's if unknown."""
        return 128 + (self._received or signal.SIGINT)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self._received is not None:
            raise Interrupted(self._received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and not self._once:
            return  # torchrun passes on what a process may have got already
        self._received = number
        if self._once:
            self._restore()
        watching = sys.gettrace()
        sys.settrace(None)  # who watches the model's code would take what follows for a part of it
        try:
            self._notice(signal.Signals(number).name)
        finally:
            sys.settrace(watching)
        if self._at_once(number):
            raise Interrupted(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
