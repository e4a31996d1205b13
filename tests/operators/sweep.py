"""``python -m tests.operators.sweep``: every operator, in processes of their own."""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

SECONDS = 180
"""An operator that takes longer counts as a crash."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=None, help="names of operators")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="every n-th operator")
    parser.add_argument("--json", type=Path, default=Path("runs/operators.jsonl"))
    parser.add_argument("--worker", action="store_true")
    asked = parser.parse_args()
    if asked.worker:
        _work(asked.only, asked.samples)
    else:
        _sweep(asked)


def _work(names: list[str], count: int) -> None:
    import torch

    from .judge import judge

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in names:
        print(json.dumps({"begins": name}), flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        start = time.perf_counter()
        rows = [finding.row() for finding in judge(name, count)]
        faulthandler.cancel_dump_traceback_later()
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps({"name": name, "seconds": seconds, "findings": rows}), flush=True)


def _sweep(asked: argparse.Namespace) -> None:
    from .database import operators

    names = asked.only or list(operators())[:: asked.every]
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    with asked.json.open("w") as file:
        while names:
            done, crash = _run_worker(names, asked.samples, file)
            names = names[len(done) :]
            if crash and names:
                row = {"name": names[0], "findings": [{"outcome": "crash", "why": crash}]}
                file.write(json.dumps(row) + "\n")
                names = names[1:]


def _run_worker(names: list[str], count: int, file) -> tuple[list[str], str]:
    command = [sys.executable, "-m", "tests.operators.sweep", "--worker", "--samples", str(count)]
    worker = subprocess.Popen(
        [*command, "--only", *names[:100]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    done = []
    for line in worker.stdout:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "name" in row:
            done.append(row["name"])
            file.write(line)
            file.flush()
            print(
                row["name"],
                row["seconds"],
                sorted({f["outcome"] for f in row["findings"]}),
                flush=True,
            )
    errors = worker.stderr.read()
    code = worker.wait()
    return done, f"exit {code}: {errors[-600:]}" if code else ""


if __name__ == "__main__":
    main()
