"""The table of training runs on Omniglot, over seeds."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.tables.cells import table

PAPERS = {
    "5-way": {"MAML": 0.987, "MAML++": 0.9947},
    "20-way": {"MAML": 0.958, "MAML++": 0.9765},
}
"""Finn et al. (2017), table 1; Antoniou et al. (2019), table 1."""

HEADER = [
    "1-shot",
    "accuracy, mean of seeds (each)",
    "the paper's",
    "meta-training",
    "minutes of each",
]


def runs(found: dict[str, Any]) -> str:
    """A row for each number of ways and each method."""
    rows = []
    for name, methods in found["settings"].items():
        for method, kept in methods.items():
            each = list(kept["runs"].values())
            accuracies = [run["test"]["accuracy"] for run in each]
            setting, test = kept["setting"], each[0]["test"]
            shown = ", ".join(f"{100 * x:.1f}" for x in accuracies)
            minutes = ", ".join(f"{run['seconds'] / 60:.0f}" for run in each)
            inner = f"inner steps: {setting['inner_steps']}, queries a class: {setting['queries']}"
            rows.append(
                [
                    f"{name}, {method}",
                    f"**{100 * statistics.mean(accuracies):.1f}%** ({shown})",
                    f"{100 * PAPERS[name][method]:.1f}%",
                    f"{setting['iterations']:,} x {setting['tasks']} tasks, {inner}",
                    minutes,
                ]
            )
    widest = 100 * max(_intervals(found))
    text = (
        f"On {test['episodes']} tasks of 423 characters never seen, at most ± {widest:.1f}% each "
        "(95%), with as many inner steps as in training; MAML of 5 ways with 3, as in its paper. "
        f"{found['device']}, threads: {found['threads']}, torch {found['torch']}, beside other "
        "work."
    )
    return f"{table(HEADER, rows)}\n\n{text}"


def _intervals(found: dict[str, Any]) -> list[float]:
    methods = [kept for one in found["settings"].values() for kept in one.values()]
    return [run["test"]["interval_95"] for kept in methods for run in kept["runs"].values()]
