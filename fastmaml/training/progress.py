"""A progress bar with rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(
    console: Any, what: str, done: int, total: int
) -> Iterator[Callable[[int, str], None]]:
    """Show a bar while this lasts; yields ``show(done, note)``.

    Args:
        console: of rich.
        what: is in progress.
        done: how much was done before.
        total: of that.
    """
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
