"""A part of a measurement in a process of its own, which prints its result as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.support.origin import PATHS

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc hands freed tensors back to the system at once, so that resident
memory is that of live tensors; it makes allocation slower."""


def fresh(program: str, *arguments: str, threads: int, environment: dict[str, str]) -> Any:
    """What a program of `benchmarks.programs` prints last, as a process that begins with nothing.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    settings = {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": str(threads)}
    inherited = {k: v for k, v in os.environ.items() if k not in GIVES_BACK}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.programs.{program}", *arguments],
        env=inherited | settings | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{program} {' '.join(arguments)}: {' '.join(done.stderr.split()[-60:])}")
    return json.loads(done.stdout.splitlines()[-1])
