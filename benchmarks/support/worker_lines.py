"""Lines that a process writes to a pipe, each waited for until a deadline."""

from __future__ import annotations

import os
import select
import time


class Lines:
    """Of one pipe.

    Args:
        pipe: its file descriptor.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe, self._left = pipe, b""

    def next(self, deadline: float) -> bytes | None:
        """A line; None if the process ended.

        Raises:
            TimeoutError: there is none by the deadline, a time of `time.monotonic`.
        """
        while b"\n" not in self._left:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._pipe], [], [], left)[0]:
                raise TimeoutError
            more = os.read(self._pipe, 1 << 16)
            if not more:
                return None
            self._left += more
        line, self._left = self._left.split(b"\n", 1)
        return line
