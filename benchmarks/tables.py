"""Write the README's tables from the results under benchmarks/results.

    python benchmarks/tables.py            # rewrite README.md
    python benchmarks/tables.py --check    # fail if it differs

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
    found = read("cpu/meta_step.json")
    names = list(dict.fromkeys(n for w in found["workloads"] for n in w["rows"]))
    rows = []
    for name in names:
        cells = []
        for work in found["workloads"]:
            row = work["rows"].get(name)
            order = ", first order" if "irst" in name else ""
            loop = work["rows"][f"hand-written loop{order}"]["median_ms"]
            cells.append(
                "" if row is None else f"{row['median_ms']:.1f} ({loop / row['median_ms']:.1f}x)"
            )
        rows.append([name, *cells])
    header = [
        "median ms (times as fast as the loop of the same order)",
        *(w["workload"] for w in found["workloads"]),
    ]
    note = (
        f"{found['device']}, torch {found['torch']}, {found['rounds']} rounds; quartiles and first "
        "calls are in `benchmarks/results/cpu/meta_step.json`."
    )
    return f"{table(header, rows)}\n\n{note}"


TABLES: dict[str, Callable[[], str]] = {"learned": learned, "memory": memory, "time": times}


def filled(text: str) -> str:
    """The text with every table written anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- results: {name} -->\n).*?(<!-- end -->)"
        content = f"{make()}\n"
        text, count = re.subn(
            pattern, lambda m, c=content: m[1] + c + m[2], text, count=1, flags=re.DOTALL
        )
        if not count:
            raise SystemExit(f"README.md has no place for the table {name!r}.")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = filled(text)
    if options.check and new != text:
        raise SystemExit("README.md differs from the results: run python benchmarks/tables.py")
    if not options.check:
        readme.write_text(new)


if __name__ == "__main__":
    main()
