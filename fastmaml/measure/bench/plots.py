"""The picture of a sweep: time and memory against inner steps and tasks, with fitted growth."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmaml._files import write_whole
from fastmaml.measure.bench.cells import Cell, Series
from fastmaml.measure.bench.fit import Line, by_series, law_points, line, memory_law

COLOURS = ("#c44e52", "#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#64b5cd", "#8c8c8c")
MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class _Axis:
    """What goes along the bottom: its label, a cell's place, and what is the same for all."""

    label: str
    of: Callable[[Cell], int]
    fixed: Callable[[Cell], int]
    each: str


STEPS = _Axis(
    "inner steps", lambda c: c.configuration.steps, lambda c: c.configuration.tasks, "step"
)
TASKS = _Axis("tasks", lambda c: c.configuration.tasks, lambda c: c.configuration.steps, "task")
AT_ONCE = _Axis(
    "tasks at once", lambda c: c.tasks_at_once or 0, lambda c: c.configuration.steps, "task"
)
"""For memory: more tasks than these run one after the other."""


def plot_sweep(path: Path, cells: Sequence[Cell], title: str) -> None:
    """Write a PNG: a row of two panels, time and memory, for each axis with several values.

    Points are medians with quartiles, dashed lines the fitted growth, start + x · slope, of which
    the legend says how far it is from the points at most.

    Args:
        path: of the PNG.
        cells: of the sweep, at least one of them measured.
        title: of the figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [cell for own in by_series(cells).values() for cell in own]
    shown = [x for x in (STEPS, TASKS) if len({x.of(c) for c in measured}) > 1] or [STEPS]
    figure = Figure(figsize=(12, 5.2 * len(shown)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for row, axis in zip(figure.subplots(len(shown), 2, squeeze=False), shown, strict=True):
        _panel(row[0], measured, axis, TIME)
        _panel(row[1], measured, AT_ONCE if axis is TASKS else axis, MEMORY)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_whole(path, content.getvalue())


def _milliseconds(cell: Cell) -> tuple[float, float, float] | None:
    found = cell.seconds
    return None if found is None else (1e3 * found.low, 1e3 * found.median, 1e3 * found.high)


def _megabytes(cell: Cell) -> tuple[float, float, float] | None:
    size = cell.peak_bytes
    return None if not size else (size / 1e6, size / 1e6, size / 1e6)


def _line_of_times(shown: Sequence[Cell], series: Sequence[Cell], axis: _Axis) -> Line | None:
    points = [(axis.of(c), h[1]) for c in shown if (h := _milliseconds(c)) is not None]
    return line([x for x, _ in points], [y for _, y in points])


def _line_of_law(shown: Sequence[Cell], series: Sequence[Cell], axis: _Axis) -> Line | None:
    """Along the law of the whole series, which says what fits in a budget too."""
    law = memory_law(series)
    if law is None or len({axis.of(c) for c in shown}) < 2:
        return None
    if axis is STEPS:
        tasks = max(c.tasks_at_once or 0 for c in shown)
        start, slope = law.shared + tasks * law.fixed, tasks * law.per_step
    else:
        start, slope = law.shared, law.fixed + axis.fixed(shown[0]) * law.per_step
    return Line(start / 1e6, slope / 1e6, law.residual, len(law_points(series)))


@dataclass(frozen=True)
class _Height:
    """What goes up: its label and unit, a cell's quartiles, and how it grows."""

    label: str
    unit: str
    of: Callable[[Cell], tuple[float, float, float] | None]
    growth: Callable[[Sequence[Cell], Sequence[Cell], _Axis], Line | None]


TIME = _Height("ms a meta-step", "ms", _milliseconds, _line_of_times)
MEMORY = _Height("peak MB of a meta-step", "MB", _megabytes, _line_of_law)


def _panel(axes: Any, cells: Sequence[Cell], axis: _Axis, height: _Height) -> None:
    """One line for each series, at the largest value of the other axis."""
    from matplotlib.ticker import LogLocator

    at = max(axis.fixed(cell) for cell in cells)
    whole = by_series(c for c in cells if height.of(c) is not None)
    of_series = by_series(c for own in whole.values() for c in own if axis.fixed(c) == at)
    several = len({series[1:] for series in of_series}) > 1
    for number, (series, own) in enumerate(of_series.items()):
        shown = sorted(own, key=axis.of)
        fitted = height.growth(shown, whole[series], axis)
        _series(axes, number, _name(series, several), shown, axis, height, fitted)
    axes.set_xscale("log")
    axes.set_yscale("log")
    places = sorted({axis.of(cell) for cell in cells})
    axes.set_xticks(places, [str(x) for x in places])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    other = "tasks" if axis is STEPS else "inner steps"
    axes.set(xlabel=f"{axis.label} ({at} {other})", ylabel=height.label)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if of_series:  # below, where no point is
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        axes.legend(frameon=False, fontsize=8, ncols=2, **place)


def _series(
    axes: Any,
    number: int,
    name: str,
    cells: list[Cell],
    axis: _Axis,
    height: _Height,
    fitted: Line | None,
) -> None:
    """Points with their quartiles, and the fitted line."""
    xs = [axis.of(cell) for cell in cells]
    found = [h for cell in cells if (h := height.of(cell)) is not None]
    middle = [median for _, median, _ in found]
    spread = [[m - low for low, m, _ in found], [high - m for _, m, high in found]]
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    if fitted is not None:
        name += f": {_growth(fitted, height.unit, axis.each)}"
        many = [xs[0] * (xs[-1] / xs[0]) ** (i / 60) for i in range(61)]
        above = [x for x in many if fitted.at(x) > 0]
        axes.plot(above, [fitted.at(x) for x in above], color=colour, ls="--", lw=1, alpha=0.7)
    axes.errorbar(
        xs, middle, spread, color=colour, marker=marker, ms=5, ls="none", capsize=2, label=name
    )


def _growth(fitted: Line, unit: str, each: str) -> str:
    """Such as "+2.31 ms a step, within 4%", which no two points can say."""
    within = f", within {100 * fitted.residual:.2g}%" if fitted.points > 2 else ", by two points"
    return f"{fitted.slope:+.3g} {unit} a {each}{within}"


def _name(series: Series, several: bool) -> str:
    return f"{series.method} [{series.backend}, {series.executor}]" if several else series.method
