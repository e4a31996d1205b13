"""How time and memory grow, from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastmaml.engine.memory_law import MemoryLaw
from fastmaml.sweeps.cells import Cell, Series


@dataclass(frozen=True)
class Line:
    """y = start + x · slope.

    Attributes:
        start: at 0.
        slope: for each 1 of x.
        residual: the largest |line - point| / point.
    """

    start: float
    slope: float
    residual: float

    def at(self, x: float) -> float:
        """The height there."""
        return self.start + x * self.slope


def line(xs: Sequence[float], ys: Sequence[float]) -> Line | None:
    """The line with the least squared relative errors; None unless there are two different x.

    Relative, as points may be orders of magnitude apart, and a log scale shows them so.
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
    residual = max(abs(start + x * slope - y) / y for _, x, y in rows)
    return Line(start, slope, residual)


def by_series(cells: Iterable[Cell]) -> dict[Series, list[Cell]]:
    """The cells that were measured, apart by method, backend and executor."""
    found: dict[Series, list[Cell]] = {}
    for cell in cells:
        if not cell.refusal:
            found.setdefault(cell.configuration.series, []).append(cell)
    return found


def law_points(cells: Iterable[Cell]) -> list[tuple[int, int, int]]:
    """(tasks at once, steps, bytes) of the cells of one series whose memory was measured.

    One inner step is left out where there are two other numbers of them: its peak lies elsewhere
    (at the query pass), and growth is wanted.
    """
    points = [
        (cell.tasks_at_once, cell.configuration.steps, cell.peak_bytes)
        for cell in cells
        if cell.peak_bytes and cell.tasks_at_once
    ]
    several = len({steps for _, steps, _ in points} - {1}) > 1
    return [point for point in points if point[1] > 1 or not several]


def memory_law(cells: Iterable[Cell]) -> MemoryLaw | None:
    """The law fitted to those points; None if there are none."""
    points = law_points(cells)
    return MemoryLaw.fit(points) if points else None
