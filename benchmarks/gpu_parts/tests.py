"""The tests that need a GPU, until the time is over: those first of which no other part tells."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.pool import SHARED, processes
from benchmarks.support.origin import ROOT

GRAPHS = ("engine/recording/test_cuda_streams", "engine/recording/test_tensor_cores")
"""Few, and about what a CPU cannot show; `graphs` runs them early."""

FILES = (
    "gpu/test_triton_gpu",
    "gpu/test_gpu_profile",
    "gpu/test_gpu_frozen",
    "ops/test_ops_attention",
    "ops/test_ops_edges",
    "ops/test_ops",
    "gpu/test_gpu",
)
"""With those, all that hold a test marked ``gpu`` (tests/repository/test_gpu_run.py compares)."""

ELSEWHERE = (
    "contract/test_contract",
    "engine/recording/test_capture",
    "ops/test_cuda_sources",
    "ops/test_triton",
)
"""What the rehearsal runs besides."""

ENDING = 4.0  # seconds for pytest to end and for this to read what it wrote


def main(answer: Answer) -> None:
    """As many as there is time for."""
    run(answer, chosen(answer), processes(answer))


def run(answer: Answer, which: list[str], count: int) -> None:
    """One pytest, in so many processes, which tells of each test."""
    told = answer.path.with_suffix(".jsonl")
    told.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_parts.telling"]
    command += ["-p", "no:cacheprovider", "--tb=short", "-rN"]
    command += ["--continue-on-collection-errors", *which]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(count), "--dist", "load", "--max-worker-restart", "50"]
    settings = {
        **SHARED,
        "FASTMAML_TOLD": str(told),
        "FASTMAML_TOLD_UNTIL": str(max(1.0, answer.left - ENDING)),
    }
    if answer.device == "cpu":
        settings["TRITON_INTERPRET"] = "0"  # the tests say where they want it
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings)
    try:
        code: int | None = process.wait(max(1.0, answer.left - ENDING / 2))
    except subprocess.TimeoutExpired:
        process.kill()
        code = None
    collect(answer, told.read_text().splitlines() if told.exists() else [], code)


def reason(why: str) -> str:
    """The error's own line of what pytest says."""
    lines = why.strip().splitlines() or ["?"]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return errors[0] if errors else lines[-1]


def chosen(answer: Answer) -> list[str]:
    """What pytest is asked: on a CPU the tests that stand for those of a GPU, as far as there are.

    In particular those of another PyTorch, Triton and Python than development's.
    """
    if answer.device == "cuda":
        which = ["-m", "gpu", *(["-k", "relu and task_act"] if answer.quick else [])]
        names: tuple[str, ...] = (*FILES, *GRAPHS)  # which may not have had the time
    else:
        which = ["--all", "-m", "not gpu"]
        names = ("maml/test_maml",) if answer.quick else (*FILES, *ELSEWHERE)
    return [*which, *(f"tests/{name}.py" for name in names)]


def collect(answer: Answer, lines: list[str], code: int | None) -> None:
    """Rows, counts and failures of what was told."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # pytest was stopped while it wrote
        if "selected" in row:
            answer.found["selected"] = row["selected"]
        else:
            rows.append(row)
    answer.found["rows"] = rows
    for row in rows:
        if row["outcome"] in ("failed", "error"):
            answer.failures.append(f"{row['name']}: {reason(row['why'])[:300]}")
    counts = {
        w: sum(r["outcome"] == w for r in rows) for w in ("passed", "failed", "error", "skipped")
    }
    answer.found["counts"] = counts
    selected = answer.found.get("selected", 0)
    left = max(0, selected - len(rows))
    if not rows or (code not in (0, 1, 5, None) and not left):
        answer.fail(f"pytest ended with {code} after {len(rows)} of {selected} tests")
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    answer.say(f"{told} of {selected}" + (f"; {left} not reached" if left else ""))
