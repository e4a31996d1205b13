"""What does second order cost beside first order, and does a second run say the same?

    python -m benchmarks.programs.vs_first_order [--seconds 20] [--device cuda] [--quick]

`fm.bench` with ``vs="first-order"`` on a sinusoid MLP, a conv4 and a 2-layer transformer, each in a
fresh process; when all are done, all of them once more. The second run's median is held against
what the first one stated, the least and the most of its turns. Writes
benchmarks/results/DEVICE/vs_first_order.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fastmaml as fm
from benchmarks.support.fresh import fresh
from benchmarks.support.reference import problem_of
from benchmarks.support.results import about, place, save
from benchmarks.support.workloads import WORKLOADS, Workload

RUNS = 2
STEPS = (1, 5)
BUDGET = 1_000_000_000  # bytes, for the part of the report that says what fits
SUBJECTS = {
    "mlp": replace(
        WORKLOADS["sinusoid-5"], title="sinusoid MLP 1-40-40-1, 25 tasks of 10 + 10 examples"
    ),
    "conv4": replace(
        WORKLOADS["omniglot-5w"],
        tasks=8,
        title="conv4-64 on 28x28, 5-way 1-shot, 8 tasks of 5 + 5 examples",
    ),
    "transformer": replace(
        WORKLOADS["transformer"], title="2-layer transformer, d=128, 4 tasks of 8 + 8 x 32 tokens"
    ),
}


def subject(key: str, quick: bool) -> Workload:
    work = SUBJECTS[key]
    small = {"mlp": 8, "conv4": 4, "transformer": 0}[key]
    return replace(work, tasks=2, filters=small) if quick else work


def point(options: argparse.Namespace) -> dict[str, Any]:
    """A run, in its process."""
    work = subject(options.point, options.quick)
    p = problem_of(work, options.device)
    maml = fm.MAML(p.model, p.lr, steps=p.steps, loss=p.loss)
    sweep = fm.bench(
        maml, p.episodes, steps=options.steps, vs="first-order", budget=BUDGET,
        repeats=options.repeats, seconds=options.seconds, title=work.title,
    )  # fmt: skip
    return {
        "title": work.title,
        "text": str(sweep),
        "prices": [price_of(price) for price in sweep.second_order],
        "cells": [cell_of(cell) for cell in sweep.cells],
    }


def price_of(price: Any) -> dict[str, Any]:
    """An exact method beside first order."""
    found: dict[str, Any] = {"method": price.exact.method, "steps": price.exact.steps}
    if price.time is None:
        return found | {"missing": price.missing}
    return found | {
        "median": price.time.median,
        "interval": [price.time.least, price.time.most],
        "memory": price.memory,
        "error": price.error,
        "cosine": price.cosine,
    }


def cell_of(cell: Any) -> dict[str, Any]:
    """A configuration's seconds, turn by turn."""
    c, seconds = cell.configuration, cell.seconds
    found = {"method": c.method, "steps": c.steps, "peak_bytes": cell.peak_bytes}
    if seconds is None:
        return found | {"missing": cell.refusal}
    return found | {
        "median": seconds.median,
        "interval": [seconds.least, seconds.most],
        "turns": list(cell.turns),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=20, help="of turns, in each process")
    parser.add_argument("--repeats", type=int, default=15, help="turns at most")
    parser.add_argument("--quick", action="store_true", help="three turns of small networks")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--point", choices=SUBJECTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.seconds, options.repeats = 0.1, 3
    if options.point:
        print(json.dumps(point(options)))
        return
    path = place(options.json, options.device, "vs_first_order", options.quick)
    settings = {n: getattr(options, n) for n in ("quick", "steps", "seconds", "repeats")}
    result: dict[str, Any] = {**about(options.device), **settings, "subjects": {}}
    passed = ["--device", options.device, "--threads", str(options.threads)]
    passed += ["--seconds", str(options.seconds), "--repeats", str(options.repeats)]
    passed += ["--steps", *map(str, options.steps), *(["--quick"] if options.quick else [])]
    for number in range(RUNS):
        for key in options.subjects:
            run = fresh(
                "vs_first_order", "--point", key, *passed, threads=options.threads,
                environment={},
            )  # fmt: skip
            one = result["subjects"].setdefault(key, {"title": run["title"], "runs": []})
            one["runs"].append(run)
            print(f"{one['title']}, run {number + 1} done", flush=True)
            save(path, result)


if __name__ == "__main__":
    main()
