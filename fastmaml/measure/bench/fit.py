"""How time and memory grow, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.measure.bench.cells import Cell, Series


@dataclass(frozen=True)
class Line:
    """y = start + x · slope.

    Attributes:
        start: at 0.
        slope: for each 1 of x.
        residual: the largest |line - point| / point.
        points: how many it was fitted to; two are met by any line.
    """

    start: float
    slope: float
    residual: float
    points: int

    def at(self, x: float) -> float:
        """The line's value at `x`."""
        return self.start + x * self.slope


def line(xs: Sequence[float], ys: Sequence[float]) -> Line | None:
    """The line with the least squared relative errors; None unless there are two different x.

    Relative, as points may be orders of magnitude apart, and a log scale shows them so. Neither of
    its numbers is negative: at no size does a step take less than nothing, nor a longer one less.
    """
    if len(set(xs)) < 2 or min(ys) <= 0:
        return None
    weights = [1 / (y * y) for y in ys]
    total = sum(weights)
    x0 = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    y0 = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    rows = list(zip(weights, xs, ys, strict=True))
    slope = sum(w * (x - x0) * (y - y0) for w, x, y in rows) / sum(
        w * (x - x0) ** 2 for w, x, _ in rows
    )
    start = y0 - slope * x0
    if start < 0:  # the best one through 0
        ratios = [x / y for _, x, y in rows]
        start, slope = 0.0, sum(ratios) / sum(r * r for r in ratios)
    if slope < 0:  # the best one that stays level
        start, slope = sum(1 / y for y in ys) / total, 0.0
    residual = max(abs(start + x * slope - y) / y for _, x, y in rows)
    return Line(start, slope, residual, len(rows))


def by_series(cells: Iterable[Cell]) -> dict[Series, list[Cell]]:
    """The cells that were measured, apart by method, backend and executor."""
    found: dict[Series, list[Cell]] = {}
    for cell in cells:
        if not cell.refusal:
            found.setdefault(cell.configuration.series, []).append(cell)
    return found


Size = Callable[[Cell], int | None]
"""Bytes of a cell."""


def later(cell: Cell) -> int | None:
    """Of the calls after the first."""
    return cell.peak_bytes


def needed(cell: Cell) -> int | None:
    """Of the largest call, the first one among them."""
    return cell.needed_bytes


def law_points(cells: Iterable[Cell], size: Size = later) -> list[tuple[int, int, int]]:
    """(tasks at once, steps, bytes) of the cells of one series whose memory was measured.

    One inner step is left out where there are two other numbers of them: its peak lies elsewhere
    (at the query pass), and growth is wanted.
    """
    points = [
        (cell.tasks_at_once, cell.configuration.steps, found)
        for cell in cells
        if (found := size(cell)) and cell.tasks_at_once
    ]
    several = len({steps for _, steps, _ in points} - {1}) > 1
    return [point for point in points if point[1] > 1 or not several]


def memory_law(cells: Iterable[Cell], size: Size = later) -> MemoryLaw | None:
    """The law fitted to those points; None if there are none."""
    points = law_points(cells, size)
    return MemoryLaw.fit(points) if points else None


class TimeLaw(NamedTuple):
    """Seconds of a meta-step of one series against steps or tasks, all else the same.

    Attributes:
        series: method, backend and executor.
        axis: what is varied.
        at: the other one.
        line: the fitted growth.
    """

    series: Series
    axis: Literal["steps", "tasks"]
    at: int
    line: Line

    def as_dict(self) -> dict[str, Any]:
        """The law as a plain dict, for JSON."""
        return {
            **self.series._asdict(),
            "axis": self.axis,
            "at": self.at,
            "start_s": self.line.start,
            "slope_s": self.line.slope,
            "residual": self.line.residual,
            "points": self.line.points,
        }


def time_laws(cells: Iterable[Cell]) -> list[TimeLaw]:
    """Of every series, wherever at least two numbers of steps, or of tasks, were measured."""
    found: dict[tuple[Series, Literal["steps", "tasks"], int], list[tuple[int, float]]] = {}
    for series, own in by_series(cells).items():
        for cell in own:
            steps, tasks, seconds = cell.configuration.steps, cell.configuration.tasks, cell.seconds
            if seconds is not None:
                found.setdefault((series, "steps", tasks), []).append((steps, seconds.median))
                found.setdefault((series, "tasks", steps), []).append((tasks, seconds.median))
    laws = ((key, line(*zip(*points, strict=True))) for key, points in found.items())
    return [TimeLaw(*key, fitted) for key, fitted in laws if fitted is not None]
