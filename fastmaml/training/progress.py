"""Progress with rate and remaining time: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 30.0
"""Between two lines, at least."""


@contextmanager
def progress_bar(
    console: Any,
    what: str,
    done: int,
    total: int,
    every: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int, str], None]]:
    """Show progress while this lasts; yields ``show(done, note)``.

    Where the console is no terminal, as of a job whose output goes to a file, these are lines: the
    first, then at most one in `every` seconds, and the last.

    Args:
        console: of rich.
        what: is in progress.
        done: how much was done before.
        total: of that.
        every: seconds between two lines, at least.
        clock: in seconds.
    """
    if not (console.is_terminal or console.is_jupyter):
        yield _Lines(console, (what, done, total), every, clock)
        return
    from rich import progress

    columns = (
        progress.TextColumn("[bold]{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    with progress.Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=total, completed=done, rate="", note="")

        def show(completed: int, note: str) -> None:
            speed = shown.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            shown.update(task, completed=completed, rate=rate, note=note)

        yield show


class _Lines:
    """Prints lines such as ``meta-training 40/1000, 1.3/s, 12 min left, loss 0.512``."""

    def __init__(
        self, console: Any, of: tuple[str, int, int], every: float, clock: Callable[[], float]
    ) -> None:
        self._what, self._begun, self._total = of
        self._print, self._every, self._clock = console.print, every, clock
        self._since = self._said = clock()
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, note: str) -> None:
        """Print a line, if it is time for one."""
        if done <= self._begun:
            return
        now = self._clock()
        if self._first is None:  # the first one takes longer: it counts for no rate
            self._first = done, now
            pace = f"{_duration(now - self._since)} so far"
        elif done < self._total and now - self._said < self._every:
            return
        else:
            pace = _pace(done - self._first[0], now - self._first[1], self._total - done)
        self._said = now
        said = ", ".join(filter(None, (f"{self._what} {done}/{self._total}", pace, note)))
        self._print(said, soft_wrap=True, markup=False, highlight=False)


def _pace(done: int, seconds: float, left: int) -> str:
    """The rate, and how long the rest takes at it."""
    if done < 1 or seconds <= 0:
        return ""
    rate = f"{done / seconds:.1f}/s" if done > seconds else f"{seconds / done:.1f} s each"
    return f"{rate}, {_duration(left * seconds / done)} left" if left else rate


def _duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
