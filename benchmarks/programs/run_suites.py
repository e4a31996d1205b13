"""Run the pytest-benchmark suites of benchmarks/suites, and keep what matters of their results.

    python -m benchmarks.programs.run_suites [--quick] [--device cuda] [--suites meta_step ops]
    python -m benchmarks.programs.run_suites --convert RAW.json --json FILE   # of a run of your own

A row is there with its median and quartiles, or with the reason why it is not. pytest-benchmark's
own JSON also holds every single timing and the machine's name; it is not kept.
Writes benchmarks/results/DEVICE/suites.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.results import ROOT, about, place, save

SUITES = ROOT / "benchmarks" / "suites"
NAMES = tuple(sorted(path.stem.removeprefix("bench_") for path in SUITES.glob("bench_*.py")))
DIGITS = 3
LEAST = {False: ("0.25", "5"), True: ("0.05", "3")}
"""Seconds and rounds for a row; of a quick run."""


class Absent:
    """A pytest plugin: which rows were not timed, and why."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.split("/")[-1]
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.skipped[name] = str(reason).removeprefix("Skipped: ")
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else str(report.longrepr)
            self.failed[name] = " ".join(text.split())[:300]


def converted(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Of pytest-benchmark's JSON, the rows: microseconds a call."""
    rows = []
    for one in raw["benchmarks"]:
        stats = one["stats"]
        rows.append(
            {
                "suite": Path(one["fullname"].split("::")[0]).stem.removeprefix("bench_"),
                **one["params"],
                "median_us": round(1e6 * stats["median"], DIGITS),
                "quartiles_us": [round(1e6 * stats[q], DIGITS) for q in ("q1", "q3")],
                "rounds": stats["rounds"],
                "calls_a_round": stats["iterations"],
                **one["extra_info"],
            }
        )
    return rows


def run(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """The suites, in this process: pytest's exit code, and the result."""
    import pytest

    absent, (seconds, rounds) = Absent(), LEAST[options.quick]
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.json"
        code = pytest.main(
            [
                *(str(SUITES / f"bench_{name}.py") for name in options.suites),
                *("-q", "--no-header", "-p", "no:cacheprovider", "--rootdir", str(ROOT)),
                *("-c", str(ROOT / "pyproject.toml"), "-o", "python_files=bench_*.py"),
                *("--device", options.device, "--threads", str(options.threads)),
                *(["--quick"] if options.quick else []),
                *(["-k", options.only] if options.only else []),
                *("--benchmark-json", str(raw), "--benchmark-quiet"),
                *("--benchmark-max-time", seconds, "--benchmark-min-rounds", rounds),
            ],
            plugins=[absent],
        )
        # Where every row was skipped pytest-benchmark writes nothing.
        text = raw.read_text() if raw.exists() else ""
    rows = converted(json.loads(text)) if text else []
    return int(code), {"rows": rows, "absent": absent.skipped, "failed": absent.failed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds")
    parser.add_argument("--suites", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--only", help="as pytest's -k")
    parser.add_argument("--convert", type=Path, help="pytest-benchmark's JSON of another run")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = place(options.json, options.device, "suites", options.quick)
    head = {**about(options.device), "quick": options.quick}
    if options.convert:
        rows = converted(json.loads(options.convert.read_text()))
        save(path, {**head, "rows": rows, "absent": {}, "failed": {}})
        return
    if importlib.util.find_spec("pytest_benchmark") is None:
        reason = 'needs pytest-benchmark (pip install "fastmaml[bench]")'
        save(
            path,
            {**head, "rows": [], "absent": dict.fromkeys(options.suites, reason), "failed": {}},
        )
        print(f"no suite was run: {reason}")
        return
    code, result = run(options)
    save(path, {**head, **result})
    print(f"{len(result['rows'])} rows, {len(result['absent'])} absent, in {path}")
    sys.exit(code)


if __name__ == "__main__":
    main()
