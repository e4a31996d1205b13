"""Tables of policies that adapt: what they cost, and what they learn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.tables.cells import note, table
from benchmarks.tables.evidence import digits

Result = dict[str, Any]


def costs(found: Result) -> str:
    """Times of each contestant, and how many times as fast as the loop."""
    names = list(found["costs"][0]["contestants"])
    rows = []
    for row in found["costs"]:
        times = {n: c["median_s"] for n, c in row["contestants"].items()}
        loop = times[names[0]]
        cells = [
            digits(1e3 * times[n]) + f" ({loop / times[n]:.1f}x)" * (n != names[0]) for n in names
        ]
        rows.append([row["title"], *cells])
    worst = max(row["error"] for row in found["costs"])
    text = (
        f"Median ms (times as fast as the loop); {found['title']}. In float64 at most "
        f"{worst:.0e} apart. {note(found)}"
    )
    return f"{table(['', *names], rows)}\n\n{text}"


def runs(found: Mapping[str, Result]) -> str:
    """Whole runs of the command line, by the names of their figures."""
    rows = []
    for figure, run in found.items():
        test = run["test"]
        pairs = zip(test["per_step"], test["per_step_interval_95"], strict=True)
        cells = [f"{mean:.0f} ± {interval:.0f}" for mean, interval in pairs]
        config = run["config"]
        at_once = f"{config['tasks']} tasks x {config['trajectories']} trajectories"
        length = f"{run['iterations']} x {at_once}, {run['seconds'] / 60:.0f} min"
        name = f"[{config['dataset']}](../figures/{figure})"
        rows.append([name, *cells[:4], f"{test['chance']:.0f}", length])
    header = ["", "before", *(f"after {n}" for n in (1, 2, 3)), "untrained, adapted", "run"]
    one = next(iter(found.values()))
    tasks, interval = one["test"]["episodes"], "mean and 95% interval"
    text = f"Return on {tasks} other tasks, {interval}; one seed. {one['device']}."
    return f"{table(header, rows)}\n\n{text}"


def learned(found: Result) -> str:
    """Returns after each inner step: the mean over seeds, and the lowest and highest of them."""
    rows = []
    for row in found["learning"]:
        runs = row["runs"]
        steps = list(zip(*(run["per_step"] for run in runs), strict=True))
        order = "first order" if row["gradient"] == "first-order" else "exact"
        cells = [
            f"{statistics.mean(x):.1f} ({min(x):.1f} to {max(x):.1f})"
            if len(x) > 1
            else f"{x[0]:.1f}"
            for x in steps[:3]
        ]
        untrained = statistics.mean(run["chance"] for run in runs)
        seconds = statistics.median(run["seconds"] for run in runs)
        name = f"{row['environment']}, {order}"
        iterations = str(runs[0]["iterations"])
        rows.append([name, *cells, f"{untrained:.1f}", iterations, f"{seconds:.0f}"])
    header = [
        *("", "before", "after 1 step", "after 2 steps"),
        *("untrained, adapted", "iterations", "seconds"),
    ]
    seeds = len(found["learning"][0]["runs"])
    text = f"Mean return over {seeds} seeds (lowest to highest). {note(found)}"
    return f"{table(header, rows)}\n\n{text}"
