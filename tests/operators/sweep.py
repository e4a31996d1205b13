"""``python -m tests.operators.sweep``: every operator, a hundred at a time in a process of its own.

Writes `results.json`, of which `table.py` makes docs/operators.md.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .results import DOCS, RESULTS, figures, merged, page

RAW = Path("runs/operators.jsonl")
"""Every finding, as they come."""

SECONDS = 240
"""An operator that takes longer counts as a crash."""

AT_ONCE = 40
"""Operators in a process: samples of one stay in memory while others run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of operators; the others' results stay")
    parser.add_argument("--sample", type=int, default=1, help="samples of each operator")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results are")
    parser.add_argument("--work", action="store_true", help="be one of the processes")
    asked = parser.parse_args()
    if asked.work:
        _work(asked.only, asked.sample)
        return
    RAW.parent.mkdir(exist_ok=True)
    rows = _all(asked.only, asked.sample, asked.jobs)
    found = merged(asked.json, rows, asked.sample, keep=bool(asked.only))
    asked.json.write_text(json.dumps(found, indent=1) + "\n")
    if asked.json == RESULTS:
        DOCS.write_text(page(found))
    for name, number in figures(found).items():
        print(f"{number:5} {name}")
    if any(row["class"] in ("wrong", "error", "crash") for row in found["operators"].values()):
        sys.exit(1)


def _all(only: list[str] | None, count: int, jobs: int) -> list[dict[str, Any]]:
    """Every operator's row."""
    from .database import operators

    names = list(operators())
    unknown = set(only or ()) - set(names)
    if unknown:
        sys.exit(f"not in the database: {', '.join(sorted(unknown))}")
    names = only or names
    parts = [names[i : i + AT_ONCE] for i in range(0, len(names), AT_ONCE)]
    with ThreadPoolExecutor(jobs) as pool:
        return [
            r for rows in pool.map(lambda part: list(_surely(part, count)), parts) for r in rows
        ]


def _surely(names: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Rows of all these, in as many processes as it takes: a crash ends one."""
    while names:
        done, crash = _process(names, count)
        yield from done
        names = names[len(done) :]
        if names:
            finding = {"outcome": "crash", "why": crash}
            yield {"name": names[0], "findings": [finding]}
            names = names[1:]


def _process(names: list[str], count: int) -> tuple[list[dict[str, Any]], str]:
    """The rows that one process gets done, and how it ended."""
    command = [sys.executable, "-m", __spec__.name, "--work", "--sample", str(count)]
    # What it says goes beside what it finds: a full pipe would stop it.
    worker = subprocess.Popen(
        [*command, "--only", *names], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    rows, said = [], []
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith('{"name"'):
            rows.append(json.loads(line))
            with RAW.open("a") as file:
                file.write(line)
            outcomes = sorted({f["outcome"] for f in rows[-1]["findings"]})
            print(rows[-1]["name"], rows[-1]["seconds"], *outcomes, flush=True)
        else:
            said.append(line)
    return rows, f"exit {worker.wait()}: {''.join(said)[-600:]}"


def _work(names: list[str], count: int) -> None:
    import torch

    from .judge import judge

    torch.set_num_threads(1)
    for name in names:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        start = time.perf_counter()
        findings = [finding.row() for finding in judge(name, count)]
        faulthandler.cancel_dump_traceback_later()
        seconds = round(time.perf_counter() - start, 1)
        print(json.dumps({"name": name, "seconds": seconds, "findings": findings}), flush=True)


if __name__ == "__main__":
    main()
