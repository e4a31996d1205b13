"""The tables of a sweep, as text or for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastmaml.measure.bench.cells import Cell, Configuration
from fastmaml.measure.bench.exact import FLOAT64, OWN
from fastmaml.measure.bench.price import Price
from fastmaml.training.evaluation import Evaluation


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; ``str()`` lays it out, the first column to the left.

    Attributes:
        title: what it shows.
        columns: their names.
        rows: as many texts each.
        notes: lines below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        widths = self._widths()
        texts = (
            "  ".join(
                text.ljust(width) if i == 0 else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (self.columns, *self.rows)
        )
        return "\n".join([self.title, *texts, *self.notes])

    def _widths(self) -> list[int]:
        lines = (self.columns, *self.rows)
        return [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

    @property
    def framed_width(self) -> int:
        """How many characters `show` needs."""
        return sum(self._widths()) + 3 * len(self.columns) + 1

    def show(self, console: Any) -> None:
        """Print it with a frame on a `rich` console that is wide enough."""
        from rich.table import Table as RichTable

        # Not the frame's own title: that would break at the frame's width, which the figures set.
        console.print(self.title, markup=False, soft_wrap=True)
        table = RichTable()
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table, markup=False)
        for note in self.notes:
            console.print(note, markup=False, soft_wrap=True)


Axis = tuple[str, Callable[[Configuration], str]]

AXES: tuple[Axis, ...] = (
    ("tasks", lambda c: str(c.tasks)),
    ("backend", lambda c: c.series.backend),
    ("executor", lambda c: c.series.executor),
)
"""What is shown in a column where it varies, and in the title where it does not."""


OTHERWISE = "*"
"""Marks errors whose exact meta-gradient was computed in another precision than most."""


def sweep_table(cells: Sequence[Cell]) -> Table:
    """Every configuration, with time, memory, error and cold start."""
    varied, fixed = _axes([cell.configuration for cell in cells])
    several = len({cell.exact_in for cell in cells if cell.exact_in}) > 1
    columns = (
        *("method", "K", *(name for name, _ in varied), "ms", "quartiles", "tasks/s", "peak MB"),
        *("first MB", "error", "cosine", "first s"),
    )
    rows = tuple(
        (
            *(cell.configuration.method, str(cell.configuration.steps)),
            *(of(cell.configuration) for _, of in varied),
            *_measured(cell, several),
        )
        for cell in cells
    )
    notes = [
        "ms: a meta-step, forward and backward, median and quartiles over turns; first s: its "
        "first call",
        "peak MB: besides the model and the data; first MB: that of the first call, which plans "
        "and records",
        f"error: |g - e| / |e| of the meta-gradient g and the exact one e ({_exact_in(cells)})",
    ]
    title = "meta-steps by gradient method and inner steps K" + fixed
    return Table(title, columns, rows, (*notes, *_reasons(cells)))


def price_table(prices: Sequence[Price]) -> Table:
    """Second order against first order."""
    varied, fixed = _axes([price.exact for price in prices])
    learned = any(price.accuracy or price.first_order_accuracy for price in prices)
    metric = next((e.metric for p in prices if (e := p.accuracy or p.first_order_accuracy)), "")
    more = (f"{metric}, exact", "1st order") if learned else ()
    columns = (
        *("exact method", "K", *(name for name, _ in varied), "time", "quartiles", "range"),
        *("memory", "1st order's error", "cosine", *more),
    )
    rows = tuple(
        (
            *(price.exact.method, str(price.exact.steps), *(of(price.exact) for _, of in varied)),
            *_ratios(price),
            *((_said(price.accuracy), _said(price.first_order_accuracy)) if learned else ()),
        )
        for price in prices
    )
    title = "second order against first order: times as much" + fixed
    return Table(title, columns, rows, tuple(_about_ratios(prices)))


def _about_ratios(prices: Sequence[Price]) -> Iterator[str]:
    """How the spread was had, and what is missing."""
    timed = [price for price in prices if price.time is not None]
    if any(price.paired for price in timed):
        yield (
            "time: of the turns of a round, median; range: from the least round to the most, in "
            "which the median of another run is expected"
        )
    if not all(price.paired for price in timed):
        yield (
            "time: of medians, as turns were not taken in rounds; range: from the least turn over "
            "first order's most to the most over its least"
        )
    yield from (f"{_where(p.exact)}: {p.missing}" for p in prices if p.missing)


def _axes(configurations: Sequence[Configuration]) -> tuple[list[Axis], str]:
    """The axes that vary, and a text with the others."""
    values = {name: {of(c) for c in configurations} for name, of in AXES}
    varied = [(name, of) for name, of in AXES if len(values[name]) > 1]
    fixed = [f"{name} {min(v)}" for name, v in values.items() if len(v) == 1]
    return varied, f" ({', '.join(fixed)})" if fixed else ""


def _exact_in(cells: Sequence[Cell]) -> str:
    found = {cell.exact_in for cell in cells if cell.exact_in}
    if len(found) > 1:
        return f"{FLOAT64}; {OTHERWISE}: in the model's own precision"
    return "in the model's own precision" if found == {OWN} else FLOAT64


def _measured(cell: Cell, several: bool) -> tuple[str, ...]:
    seconds = cell.seconds
    if cell.refusal or seconds is None:
        return (cell.refusal.partition(":")[0] or "-", *("-",) * 7)
    return (
        number(1e3 * seconds.median),
        f"{number(1e3 * seconds.low)}–{number(1e3 * seconds.high)}",
        number(cell.tasks_per_second),
        "-" if cell.peak_bytes is None else number(cell.peak_bytes / 1e6),
        "-" if cell.first_peak_bytes is None else number(cell.first_peak_bytes / 1e6),
        _error(cell.error) + OTHERWISE * (several and cell.exact_in == OWN),
        _cosine(cell.cosine),
        number(cell.first_call),
    )


def _ratios(price: Price) -> tuple[str, ...]:
    time, memory = price.time, price.memory
    return (
        "-" if time is None else f"{time.median:.2f}",
        "-" if time is None else f"{time.low:.2f}–{time.high:.2f}",
        "-" if time is None else f"{time.least:.2f}–{time.most:.2f}",
        "-" if memory is None else f"{memory:.2f}",
        _error(price.error),
        _cosine(price.cosine),
    )


def _reasons(cells: Sequence[Cell]) -> Iterator[str]:
    for cell in cells:
        if ":" in cell.refusal:
            yield f"{_where(cell.configuration)}: {cell.refusal}"
    # Many cells share a reason for having no figure, which is then said once.
    unmeasured = {c.memory for c in cells if not c.refusal and c.peak_bytes is None}
    yield from (f"peak {reason}" for reason in sorted(unmeasured) if reason)


def _where(c: Configuration) -> str:
    return f"{c.method}, K={c.steps}, {c.tasks} tasks, {c.series.backend}, {c.series.executor}"


def _error(x: float | None) -> str:
    return "-" if x is None else f"{x:.1e}" if x < 0.01 else f"{x:.3f}"


def _cosine(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def _said(evaluation: Evaluation | None) -> str:
    return "-" if evaluation is None else evaluation.text()


def number(x: float | None) -> str:
    """With about three digits."""
    if x is None:
        return "-"
    return f"{x:.3f}" if x < 1 else f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:,.0f}"
