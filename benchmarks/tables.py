"""Write the tables and plots of the README and docs from the results under benchmarks/results.

    python benchmarks/tables.py            # rewrite README.md and docs
    python benchmarks/tables.py --check    # fail if they differ

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``; where nothing was measured
it says what would do so. A plot holds the hash of the results that it shows.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import choosing
import convergence_figure
import figures
import growth_figure
import language_tables
import memory_figure
from cells import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DEVICES = ("cpu", "cuda")
LEFT_OUT = {"skipped": "it was not asked for"}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def learned() -> str:
    """One row a committed training run."""
    rows = []
    for path in sorted((RESULTS / "cpu").glob("train_*.json")):
        found = json.loads(path.read_text())
        test, config = found["test"], found["config"]
        accuracy = "accuracy" in test
        metric = "accuracy" if accuracy else "loss"
        minutes = found["seconds"] / 60

        def show(mean: float, interval: float, accuracy: bool = accuracy) -> str:
            if accuracy:
                return f"{100 * mean:.1f} ± {100 * interval:.1f}%"
            return f"MSE {mean:.2f} ± {interval:.2f}"

        untrained = found["untrained"]
        rows.append(
            [
                f"[{found['title']}](docs/{path.stem}.png)",
                f"**{show(test[metric], test['interval_95'])}**",
                show(test["no_adaptation"], test["no_adaptation_interval_95"]),
                show(untrained[metric], untrained["interval_95"]) if untrained else "not measured",
                "" if test["chance"] is None else f"{100 * test['chance']:.0f}%",
                f"{test['steps']} steps, {test['episodes']} tasks",
                f"{found['iterations']:,} x {config['tasks']} tasks, {minutes:.0f} min",
            ]
        )
    header = [
        "task",
        "after adaptation, 95% interval",
        "before adaptation",
        "an untrained network, adapted alike (validation tasks)",
        "chance",
        "test",
        "meta-training",
    ]
    return table(header, rows)


def memory() -> str:
    found = read("cpu/memory_growth.json")
    rows = []
    for method, row in found["methods"].items():
        peaks = row["peak_copies"]
        rows.append(
            [
                f"`{method}`",
                f"{row['growth_copies_per_step']:.2f}",
                f"{peaks[0]:.1f}",
                f"{peaks[-1]:.1f}",
            ]
        )
    first, last = found["steps"][0], found["steps"][-1]
    header = ["method", "copies a step", f"peak at {first} step", f"peak at {last} steps"]
    return table(header, rows)


def times() -> str:
    """Of every device that has results: milliseconds, then first calls and memory."""
    found = [
        read(f"{d}/meta_step.json") for d in DEVICES if (RESULTS / d / "meta_step.json").exists()
    ]
    return "\n\n".join(part for one in found for part in times_of(one))


def times_of(found: dict[str, Any]) -> list[str]:
    """Two tables, a row a contestant, and a note."""
    works = found["workloads"]
    shorts = [work["workload"]["short"] for work in works]
    names = dict.fromkeys(n for work in works for n in work["rows"])
    ran = [n for n in names if any("skipped" not in w["rows"].get(n, LEFT_OUT) for w in works)]
    speed = [[n, *(speed_of(work["rows"], n) for work in works)] for n in ran]
    begin = [[n, *(begin_of(work["rows"].get(n, LEFT_OUT)) for work in works)] for n in ran]
    reasons = {n: works[0]["rows"].get(n, LEFT_OUT)["skipped"] for n in names if n not in ran}
    note = (
        f"{found['device']}, threads: {found['threads']}, torch {found['torch']}, up to "
        f"{found['rounds']} rounds. "
        + " ".join(f"*{w['workload']['short']}*: {w['workload']['title']}." for w in works)
        + "".join(f" Left out: {n} ({reason})." for n, reason in reasons.items())
    )
    return [
        table(["median ms (times as fast as the loop of the same order)", *shorts], speed),
        table(["first call in a fresh process, s; peak memory of a step, MB", *shorts], begin),
        note,
    ]


def speed_of(rows: dict[str, Any], name: str) -> str:
    row = rows.get(name, LEFT_OUT)
    if "skipped" in row:
        return ""
    loop = rows["hand-written loop" + (", first order" if row["order"] == 1 else "")]
    ms = row["median_ms"]
    times = f" ({loop['median_ms'] / ms:.1f}x)" if "median_ms" in loop else ""
    return f"{ms:,.{2 if ms < 10 else 1 if ms < 100 else 0}f}{times}"


def begin_of(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return ""
    memory = "" if row["step_mb"] is None else f"; {row['step_mb']:,.0f}"
    seconds = row["first_call_s"]
    return f"{seconds:,.{2 if seconds < 10 else 0}f}{memory}"


def migration() -> str:
    """What each step from a loop of a library's to `maml(episodes)` gains."""
    speed, _, note = times_of(read("cpu/migration.json"))
    return f"{speed}\n\n{note}"


def measured(name: str, make: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """A table of one result, or, where there is none, the command that measures it."""

    def written() -> str:
        if not (RESULTS / "cpu" / f"{name}.json").exists():
            script = {"suites": "run_suites"}.get(name, name)
            return f"Not measured yet: `python benchmarks/{script}.py`."
        return make(read(f"cpu/{name}.json"))

    return written


def learning() -> dict[str, Any] | None:
    """How fast each method learns, where that was measured."""
    path = RESULTS / "cpu" / "convergence.json"
    found = read("cpu/convergence.json") if path.exists() else {"absent": ""}
    return None if "absent" in found else found


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "learned": learned,
        "memory": memory,
        "time": times,
        "price": measured("growth", lambda found: choosing.headline(found, learning())),
    },
    "docs/migrating.md": {"migration": migration},
    "docs/text.md": {
        "intents": measured("intents", language_tables.intents),
        "glue": measured("glue", language_tables.glue),
        "language-memory": measured("language_memory", language_tables.memory),
    },
    "docs/choosing.md": {
        "price": measured("growth", choosing.price),
        "convergence": measured("convergence", choosing.convergence),
        "laws": measured("growth", choosing.laws),
        "suites": measured("suites", choosing.suites),
        "cold-start": measured("cold_start", choosing.cold_start),
    },
}

PLOTS: dict[str, tuple[str, figures.Draw]] = {
    "docs/memory_growth.png": ("cpu/memory_growth.json", memory_figure.draw),
    "docs/growth.png": ("cpu/growth.json", growth_figure.draw),
    "docs/convergence.png": ("cpu/convergence.json", convergence_figure.draw),
}


def stale_plots() -> list[str]:
    """Those that do not show the results that there are."""
    return [png for png, (name, _) in PLOTS.items() if shown(png) != wanted(name)]


def shown(png: str) -> str | None:
    path = ROOT / png
    return figures.drawn_from(path) if path.exists() else None


def wanted(name: str) -> str | None:
    path = RESULTS / name
    if not path.exists() or "absent" in read(name):
        return None
    return figures.digest(path)


def filled(document: str) -> str:
    """The document's text with its tables written anew."""
    text = (ROOT / document).read_text()
    for name, make in TABLES[document].items():
        pattern = rf"(<!-- results: {name} -->\n).*?(<!-- end -->)"
        content = f"{make()}\n"
        text, count = re.subn(
            pattern, lambda m, c=content: m[1] + c + m[2], text, count=1, flags=re.DOTALL
        )
        if not count:
            raise SystemExit(f"{document} has no place for the table {name!r}.")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for png in stale_plots():
        if options.check or wanted(PLOTS[png][0]) is None:
            raise SystemExit(f"{png} does not show the results: run python benchmarks/tables.py")
        figures.plot(RESULTS / PLOTS[png][0], ROOT / png, PLOTS[png][1])
    for document in TABLES:
        new = filled(document)
        if options.check and new != (ROOT / document).read_text():
            raise SystemExit(
                f"{document} differs from the results: run python benchmarks/tables.py"
            )
        if not options.check:
            (ROOT / document).write_text(new)


if __name__ == "__main__":
    main()
