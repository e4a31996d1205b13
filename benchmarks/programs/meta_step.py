"""How long does one exact second-order meta-step take beside the alternatives?

    benchmarks/peers/install.sh PEERS          # once: learn2learn, higher, TorchOpt, JAX
    python -m benchmarks.programs.meta_step --peers PEERS [--rounds 15] [--threads 2]
    python -m benchmarks.programs.meta_step --slow --workloads sinusoid-1 sinusoid-5
    python -m benchmarks.programs.meta_step --large --peers PEERS

Every contestant has a process of its own, the same weights and the same episodes, and takes its
turn in every round, so that a slow moment hits all; only one computes at a time. Meta-gradients are
compared with the hand-written loop's of float64 first: in float64 on the first tasks of every
workload, then, within what rounding does, at each first call in float32. The program stops where
one that should be exact is not. What did not take part is in the results with the reason.

Of each contestant: the first call, in a fresh process that has imported what it needs; the median
and quartiles over its turns; the peak of its memory over the state before the first call (resident
memory; on CUDA, what the allocator gave out), and the same where the libraries that the call loads
were loaded by a tiny one before. Writes benchmarks/results/DEVICE/meta_step.json; with ``--slow``,
where what takes minutes to begin is timed beside the loops, torch.func and fastmaml, all in one run
as well, meta_step_slow.json; with ``--large``, of workloads that take seconds a step,
meta_step_large.json, after four calls that are not timed. Workloads that are not asked for
keep what the file holds of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import CONTESTANTS
from benchmarks.support.exactness import Check, allowed, difference, loop_of, read, require
from benchmarks.support.results import about, place, quartiles
from benchmarks.support.turns import Field, Process, WorkerError
from benchmarks.support.workloads import LARGE, WORKLOADS, Workload, arrays, network

TINY = "sinusoid-1"
WARM_CALLS = 4
"""Of each contestant, after the first, where a turn is one call: fastmaml holds calls 2, 4, 8, ...
against an eager run, which would else be most of a few turns."""
Rows = dict[str, dict[str, Any]]


def begin(check: Check, work: Workload, processes: contextlib.ExitStack) -> tuple[Rows, Any]:
    """Every contestant's first call: its row so far, and its process if it goes on."""
    field, limit, path = check.field, check.field.options.patience, check.place / "gradient.npz"
    rows: Rows = {n: {"skipped": reason} for n, reason in field.absent.items()}
    running: dict[str, Process] = {}
    for name in field.names:
        rows[name] = row = {"order": CONTESTANTS[name].order}
        if (name, work.key) in check.refused:
            row["skipped"] = check.refused[name, work.key]
            continue
        process = processes.enter_context(contextlib.closing(field.process(name, "float32")))
        try:
            data = str(check.place / f"{work.key}.npz")
            row |= process.ask("load", limit, workload=work.key, data=data, tasks=None)
            found = process.ask("first", limit, gradient=str(path))
            gradient = read(path)
            row["step_mb"] = None if CONTESTANTS[name].slow else step_memory(check, name, work)
        except WorkerError as refusal:
            row["skipped"] = f"first call: {refusal}"
            continue
        error = difference(gradient, check.whole[loop_of(name), work.key])
        require(name, work, error, allowed(work, field.options.tf32), "float32")
        row["difference_float32"] = error
        row["difference_float64"] = check.differences.get((name, work.key))
        row["first_call_s"] = round(found["seconds"], 4)
        row["first_call_mb"] = found["mb"]
        for _ in range(WARM_CALLS if field.options.large else 0):
            process.ask("turn", limit, seconds=0)
        row["peaks"], row["turns"], row["spent"] = [], [], 0.0
        running[name] = process
    return rows, running


def step_memory(check: Check, name: str, work: Workload) -> float | None:
    """Peak memory growth of a first call in MB, when all that the contestant loads is loaded.

    In a process of its own, after the same for a tiny workload.
    """
    limit, found = check.field.options.patience, None
    with contextlib.closing(check.field.process(name, "float32")) as process:
        for key in (TINY, work.key):
            data, gradient = (str(check.place / f"{n}.npz") for n in (key, "gradient"))
            process.ask("load", limit, workload=key, data=data, tasks=None)
            found = process.ask("first", limit, gradient=gradient)["mb"]
    return found if found is None else round(found, 1)


def take_turns(rows: Rows, running: dict[str, Process], options: argparse.Namespace) -> None:
    """Rounds in which each contestant calls for some time: a turn counts as its median call."""
    for _ in range(options.rounds):
        for name, process in running.items():
            row = rows[name]
            if "skipped" in row or (row["turns"] and row["spent"] > options.budget):
                continue
            start = time.monotonic()
            try:
                found = process.ask("turn", options.patience, seconds=options.turn)
            except WorkerError as refusal:
                row["skipped"] = f"in a turn: {refusal}"
                continue
            row["spent"] += time.monotonic() - start
            calls = found["ms"][1:] or found["ms"]  # the first one finds the caches cold
            row["turns"].append(statistics.median(calls))
            row["peaks"].append(found["mb"])


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it is kept."""
    if "skipped" in row:
        return {"skipped": row["skipped"]}
    turns, peaks, first = row.pop("turns"), row.pop("peaks"), row.pop("first_call_mb")
    row.pop("spent")
    known = first is not None
    return row | {
        "median_ms": round(statistics.median(turns), 4),
        "quartiles_ms": quartiles(turns, 4),
        "turns": len(turns),
        "peak_mb": round(max(first, *peaks), 1) if known else None,
        "peak_after_first_call_mb": round(max(peaks), 1) if known else None,
    }


def measured(check: Check, work: Workload) -> dict[str, Any]:
    with contextlib.ExitStack() as processes:
        rows, running = begin(check, work, processes)
        take_turns(rows, running, check.field.options)
    return {
        "measured": {**about(check.field.options.device), "patience": check.field.options.patience},
        "workload": asdict(work),
        "parameters": sum(p.numel() for p in network(work).parameters()),
        "gflop": check.gflop[work.key],
        "first_order_difference": check.first_order[work.key],
        "rows": {n: summary(rows[n]) for n in CONTESTANTS if n in rows},
    }


def others(path: Path, result: dict[str, Any], works: list[Workload]) -> list[dict[str, Any]]:
    """What the file holds of workloads that are not asked for, measured on the same machine."""
    known = json.loads(path.read_text()) if path.exists() else {}
    same = all(known.get(n) == result[n] for n in ("device", "threads", "torch", "tf32"))
    asked = {work.key for work in works}
    found = known.get("workloads", []) if same else []
    return [w for w in found if "measured" in w and w["workload"]["key"] not in asked]


def printed(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['workload']['title']} ({found['gflop']:.1f} GFLOP)"
    for name, row in found["rows"].items():
        if "skipped" in row:
            yield f"  {name:34} {row['skipped']}"
            continue
        low, high = row["quartiles_ms"]
        yield (
            f"  {name:34} {row['median_ms']:10.2f} ms ({low:.2f} to {high:.2f}, {row['turns']} "
            f"turns)  first call {row['first_call_s']:.2f} s  peak "
            f"{row['peak_mb']} MB, without libraries {row['step_mb']} MB  "
            f"off by {row['difference_float32']:.0e}"
        )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, help="the folder that peers/install.sh made")
    parser.add_argument("--slow", action="store_true", help="what compiles for minutes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turn", type=float, default=0.25, help="seconds a turn, or one call")
    parser.add_argument("--budget", type=float, default=60, help="seconds for all its turns")
    parser.add_argument("--patience", type=float, default=240, help="seconds for a first call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tf32", action="store_true", help="on CUDA, for all alike")
    parser.add_argument("--large", action="store_true", help="what takes seconds a step")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS)
    parser.add_argument(
        "--contestants", nargs="+", help="names, or parts of them; the loops are always there"
    )
    parser.add_argument("--check", action="store_true", help="compare gradients, time nothing")
    parser.add_argument("--json", type=Path, help="where the results go")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    usual = [key for key in WORKLOADS if (key in LARGE) == options.large]
    works, field = [WORKLOADS[key] for key in options.workloads or usual], Field(options)
    settings = {n: getattr(options, n) for n in ("rounds", "turn", "budget", "patience", "tf32")}
    result: dict[str, Any] = {**about(options.device), **settings, "workloads": []}
    with tempfile.TemporaryDirectory() as scratch:
        for work in {WORKLOADS[TINY], *works}:
            np.savez(Path(scratch) / f"{work.key}.npz", **arrays(work))
        check = Check(field, works, Path(scratch))
        check.run()
        name = "meta_step" + ("_slow" if options.slow else "_large" if options.large else "")
        path = place(options.json, options.device, name)
        kept = others(path, result, works)
        for work in works if not options.check else []:
            result["workloads"] = [*kept, *result["workloads"][len(kept) :], measured(check, work)]
            print("\n".join(printed(result["workloads"][-1])), flush=True)
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
