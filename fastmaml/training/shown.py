"""An evaluation on the screen: tables of the test, and a line for each validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastmaml.training.summary import Evaluation, OverNames, format_metric, quantity


def show_evaluation(console: Any, test: Evaluation, title: str) -> None:
    """Print an evaluation beside no adaptation and chance, and a line for each step.

    Where tasks have several names, metrics that only some of them have stand by name alone.
    """
    from rich.table import Table

    columns = [x for x in _columns(test) if not test.by_name or x.episodes == test.episodes]
    table = Table(title=title, title_justify="left", min_width=48)
    table.add_column("inner steps")
    for one in columns:
        table.add_column(quantity(one.metric), justify="right")
    for step in range(test.steps + 1):
        name = "0 (no adaptation)" if step == 0 else str(step)
        style = "bold" if step == test.steps else None
        table.add_row(name, *(one.text(step) for one in columns), style=style)
    if test.chance is not None:
        table.add_row(test.chance_name, *map(_chance, columns))
    if len({one.episodes for one in columns}) > 1:
        table.add_row("episodes", *(str(one.episodes) for one in columns))
    most = max(one.episodes for one in columns)
    table.caption = "one episode" if most == 1 else f"mean and 95% interval over {most} episodes"
    console.print(table)
    if test.by_name:
        _show_by_name(console, test)


def _columns(test: Evaluation) -> Iterator[Evaluation]:
    """What is always measured, then the other scores."""
    yield test
    yield from (score for name, score in test.scores.items() if name != test.metric)


def _show_by_name(console: Any, test: Evaluation) -> None:
    """Print one line for the tasks of each name and each metric, and the means over names."""
    from rich.table import Table

    table = Table(min_width=48)
    for column in ("tasks", "metric", "no adaptation", f"{test.steps} steps", "chance", "episodes"):
        table.add_column(column, justify="left" if column in ("tasks", "metric") else "right")
    for name, one in test.by_name.items():
        main, *scores = _columns(one)
        for shown in (*scores, main):
            cells = (shown.metric, shown.text(0), shown.text(), _chance(shown), str(shown.episodes))
            table.add_row(name, *cells)
    table.add_section()
    for one in _columns(test):
        if (over := one.over_names) is not None:
            table.add_row(f"mean of {len(over.names)}", *_mean(one.metric, over))
    console.print(table)


def _mean(metric: str, over: OverNames) -> tuple[str, ...]:
    ends = (format_metric(metric, over.means[k], over.intervals[k]) for k in (0, -1))
    return (metric, *ends)


def _chance(one: Evaluation) -> str:
    return "" if one.chance is None else format_metric(one.metric, one.chance)


def validation_line(line: Mapping[str, Any]) -> str:
    """What is said of a validation: its metrics after adaptation and before.

    Args:
        line: of ``metrics.jsonl``, with ``validation``.
    """
    found = line["validation"]
    metric = next(name for name in ("accuracy", "return", "loss") if name in found)
    now = format_metric(metric, found[metric], found["interval_95"])
    before = format_metric(metric, found["no_adaptation"])
    said = f"iteration {line['iteration']}: validation {metric} {now} (before adaptation {before})"
    for name, score in found.get("scores", {}).items():
        if name != metric:
            now = format_metric(name, score[name], score["interval_95"])
            said += f", {name} {now} ({format_metric(name, score['no_adaptation'])})"
    return said
