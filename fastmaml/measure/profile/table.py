"""A `Report` as text."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from fastmaml.measure.profile.report import Cell, Report

WIDEST = 200
"""Characters that no table has."""

COLUMNS = ("phase", "time", "share", "calls", "FLOPs", "of peak", "memory", "retained")


def as_text(report: Report, width: int = 80) -> str:
    """The table, and below it what concerns the whole step and why cells are empty.

    Raises:
        ImportError: rich is missing.
    """
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    show(report, console)
    return out.getvalue().rstrip("\n")


def show(report: Report, console: Any) -> None:
    """Print it on a rich console."""
    from rich import box
    from rich.table import Table

    reasons: list[str] = []
    title = f"{report.title}: {report.setting['tasks']} tasks, {report.setting['steps']} steps"
    # Not the table's own title: that would break at the table's width, which the figures set.
    console.print(title, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    for p in report.phases:
        cells = (
            _cell(p.seconds, milliseconds, reasons),
            _cell(p.share, percent, reasons),
            _cell(p.calls, count, reasons),
            _cell(p.flops, amount, reasons),
            _cell(p.of_peak, percent, reasons),
            _cell(p.peak_bytes, size_of, reasons),
            _cell(p.retained_bytes, size_of, reasons),
        )
        table.add_row(p.name, *cells)
    _whole_cells(table, console)
    for line in [*_whole(report), *(f"({i}) {why}" for i, why in enumerate(reasons, 1))]:
        console.print(line, markup=False)


def _whole_cells(table: Any, console: Any) -> None:
    """Print it; a screen that is too narrow breaks lines, as cells cut short are wrong numbers."""
    from rich.console import Console

    text = io.StringIO()
    wide = Console(file=text, width=WIDEST, highlight=False)
    if wide.measure(table).maximum <= console.width:
        console.print(table)
        return
    wide.print(table)
    console.print(text.getvalue().rstrip("\n"), markup=False, soft_wrap=True)


def _whole(report: Report) -> list[str]:
    plain, profiled = report.step_seconds, report.profiled_seconds
    setting = report.setting
    return [
        f"step: {milliseconds(plain.median)} (quartiles {milliseconds(plain.lower)} to "
        f"{milliseconds(plain.upper)}), {report.tasks_per_second:.4g} tasks/s; profiling on costs "
        f"{report.overhead:+.1%} ({milliseconds(profiled.median)})",
        f"memory at its peak: {_said(report.peak_bytes)} ({report.peak_how}); "
        f"by the process's resident memory: {_said(report.resident_bytes)}",
        f"peak of the machine: {_speed(report)}",
        f"device: {setting['device']}; executor: {setting['executor']}",
        *setting["reasons"],
        *report.notes,
    ]


def _speed(report: Report) -> str:
    if isinstance(report.peak_flops, str):
        return report.peak_flops
    return f"{report.peak_flops / 1e9:.4g} GFLOP/s ({report.peak_flops_how})"


def _said(cell: Cell) -> str:
    return cell if isinstance(cell, str) else size_of(cell)


def _cell(cell: Cell, text: Callable[[float], str], reasons: list[str]) -> str:
    if not isinstance(cell, str):
        return text(cell)
    if cell not in reasons:
        reasons.append(cell)
    return f"({reasons.index(cell) + 1})"


def milliseconds(seconds: float) -> str:
    """A time as text: three digits, in ms below a second."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def percent(share: float) -> str:
    """One digit behind the point."""
    return f"{share:.1%}"


def count(number: float) -> str:
    """A number as text, with a comma every three digits."""
    return f"{number:,.0f}"


def amount(number: float) -> str:
    """Three digits in the unit that fits."""
    return _in_units(number, 1000, ("", " k", " M", " G", " T"))


def size_of(number: float) -> str:
    """Three digits in the unit that fits."""
    return _in_units(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _in_units(number: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while abs(number) >= 999.5 and power + 1 < len(units):
        number, power = number / base, power + 1
    return f"{number:.3g}{units[power]}"
