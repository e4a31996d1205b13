"""Which code and which machine results are of, and how they are written; needs no torch."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PATHS = (str(ROOT), str(ROOT / "tests" / "support"))
"""Where a process that is begun finds this package, fastmaml, and the tests' yardsticks."""

CARRIED = ROOT / ".commit"
"""Where the tree travels without its history: what ``git describe --always --abbrev=40 --dirty``
printed before."""


def save(path: Path, result: dict[str, Any]) -> None:
    """Write it whole or not at all: who interrupts a run keeps the rows done before."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(in_json(result), indent=1, allow_nan=False) + "\n")
    part.replace(path)


def in_json(x: Any) -> Any:
    """With words for what is no number, which JSON has none of."""
    if isinstance(x, dict):
        return {name: in_json(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [in_json(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def cpu_name() -> str:
    """Such as "AMD EPYC 9R14, 2 cores"."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit, with "+changes" where the working tree differs from it."""
    run = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        head = None
    if head is None or head.returncode:
        return CARRIED.read_text().strip() if CARRIED.exists() else "unknown"
    status = [*run, "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + ("+changes" if changed else "")
