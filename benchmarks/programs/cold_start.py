"""How long until the first meta-gradient, in a fresh process, and when is it repaid?

    python -m benchmarks.programs.cold_start [--workloads sinusoid-5] [--slow] [--device cuda]

For the hand-written loop, torch.func and every executor of fastmaml: the imports, the first call
(which plans and records, or compiles), later calls, and after how many meta-steps the contestant
is ahead of the loop. Every point is a process of its own, several of each in turns: the median and
quartiles. The first call's meta-gradient is compared with the loop's of float64. What compiles for
minutes takes part with --slow, once, without any cache of an earlier run.
Writes benchmarks/results/DEVICE/cold_start.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import CONTESTANTS, LOOP
from benchmarks.programs.growth import METHODS
from benchmarks.support.exactness import ROUNDED, read
from benchmarks.support.reference import meta_gradient, problem_of
from benchmarks.support.results import PATHS, about, place, quartiles, save
from benchmarks.support.workloads import WORKLOADS, Workload

NAMES = (
    LOOP,
    "torch.func vmap",
    "fastmaml eager, reference ops",
    "fastmaml captured, reference ops",
    "fastmaml",
    "CUDA graph of vmap",
    "torch.compile of vmap",
    "fastmaml compiled",
)
SKIPPED = {"skipped": "it was not asked for"}
PARTS = (
    "import_torch_s",
    "import_fastmaml_s",
    "device_s",
    "build_s",
    "first_call_s",
    "later_call_s",
)


def fresh(name: str, work: Workload, options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """One process: its seconds, or what went wrong."""
    gradient = place / "gradient.npz"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(PATHS),
        "OMP_NUM_THREADS": str(options.threads),
        "TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=place),
        "TRITON_CACHE_DIR": tempfile.mkdtemp(dir=place),
    }
    script = str(Path(__file__).with_name("cold_point.py"))
    arguments = [name, work.key, options.device, str(options.threads), str(gradient)]
    try:
        done = subprocess.run(
            [sys.executable, script, *arguments], env=environment, capture_output=True, text=True,
            timeout=options.patience, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {options.patience:.0f} s"}
    if done.returncode:
        return {"skipped": " ".join(done.stderr.split()[-30:])}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"gradient": read(gradient)}


def reason(name: str, options: argparse.Namespace) -> str | None:
    """Why a contestant does not take part."""
    if options.device not in CONTESTANTS[name].devices:
        return f"not on {options.device}"
    if CONTESTANTS[name].slow and not options.slow:
        return "takes minutes to begin: runs with --slow"
    return None


def measured(work: Workload, options: argparse.Namespace, place: Path) -> dict[str, Any]:
    exact = meta_gradient(problem_of(work, options.device, "float64"), METHODS["Unrolled"])
    rows: dict[str, dict[str, Any]] = {
        n: {"skipped": why} if (why := reason(n, options)) else {"turns": []} for n in options.names
    }
    for turn in range(options.rounds):
        for name, row in rows.items():
            if "skipped" in row or (turn and CONTESTANTS[name].slow):
                continue
            found = fresh(name, work, options, place)
            if "skipped" in found:
                rows[name] = found
                continue
            row["difference"] = difference(found.pop("gradient"), exact)
            if not row["difference"] <= ROUNDED[work.network]:
                raise SystemExit(f"{work.title}: {name} is {row['difference']:.1e} off the loop.")
            row["turns"].append(found)
    kept = {name: summary(row) for name, row in rows.items()}
    for name, row in kept.items():
        if name != LOOP and "skipped" not in row and "skipped" not in kept.get(LOOP, SKIPPED):
            row["ahead_after"] = ahead(name, row, kept[LOOP])
    return {"workload": asdict(work), "rows": kept}


def difference(found: dict[str, Any], exact: dict[str, Any]) -> float:
    """Relative, over the whole gradient."""
    pairs = [(torch.from_numpy(found[n]).double(), exact[n].cpu()) for n in exact]
    a, b = (torch.cat([p[i].flatten() for p in pairs]) for i in (0, 1))
    return float((a - b).norm() / b.norm())


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Median and quartiles of every part."""
    if "skipped" in row:
        return row
    found: dict[str, Any] = {"turns": len(row["turns"]), "difference_float32": row["difference"]}
    for part in PARTS:
        values = [turn[part] for turn in row["turns"]]
        found[part] = round(statistics.median(values), 5)
        found[part.replace("_s", "_quartiles_s")] = quartiles(values, 5)
    found["recording_s"] = round(max(0.0, found["first_call_s"] - found["later_call_s"]), 5)
    return found


def ahead(name: str, row: dict[str, Any], loop: dict[str, Any]) -> int | None:
    """The first meta-step after which less time was spent than by the loop; None if never."""
    begun = row["build_s"] + row["first_call_s"] - loop["build_s"] - loop["first_call_s"]
    begun += row["import_fastmaml_s"] if name.startswith("fastmaml") else 0.0
    gain = loop["later_call_s"] - row["later_call_s"]
    if begun <= 0:
        return 1
    return None if gain <= 0 else 1 + math.ceil(begun / gain)


def printed(found: dict[str, Any]) -> None:
    print(found["workload"]["title"])
    for name, row in found["rows"].items():
        if "skipped" in row:
            print(f"  {name:34} {row['skipped']}")
            continue
        print(
            f"  {name:34} first call {row['first_call_s']:.3f} s, later "
            f"{row['later_call_s']:.4f} s, ahead of the loop after {row.get('ahead_after')}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    works = ("sinusoid-5", "omniglot-5w")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=works)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant")
    parser.add_argument("--patience", type=float, default=400, help="seconds for a process")
    parser.add_argument("--slow", action="store_true", help="what compiles for minutes, too")
    parser.add_argument("--quick", action="store_true", help="one round of a tiny workload")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.workloads, options.rounds = ["sinusoid-1"], 1
    path = place(options.json, options.device, "cold_start", options.quick)
    head = {**about(options.device), "quick": options.quick, "rounds": options.rounds}
    result: dict[str, Any] = {**head, "workloads": []}
    with tempfile.TemporaryDirectory() as scratch:
        for key in options.workloads:
            result["workloads"].append(measured(WORKLOADS[key], options, Path(scratch)))
            printed(result["workloads"][-1])
            save(path, result)


if __name__ == "__main__":
    main()
