"""Where results lie, and what is recorded with each of them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def folder(device: str) -> Path:
    """``benchmarks/results/DEVICE``, made if need be."""
    path = ROOT / "benchmarks" / "results" / device
    path.mkdir(parents=True, exist_ok=True)
    return path


def place(given: Path | None, device: str, name: str, quick: bool = False) -> Path:
    """The file that results go to: the one asked for, or NAME.json among those of the device.

    Those of a quick run, which show that a program works and little more, lie apart.
    """
    if given is None:
        given = (ROOT / "runs" / "bench-quick" if quick else folder(device)) / f"{name}.json"
    given.parent.mkdir(parents=True, exist_ok=True)
    return given


def save(path: Path, result: dict[str, Any]) -> None:
    """Write it whole or not at all: who interrupts a run keeps the rows done before."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def about(device: str = "cpu") -> dict[str, Any]:
    """Device, threads, versions, commit and date."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def quartiles(values: list[float], digits: int) -> list[float]:
    """The lower and the upper one, within what was measured."""
    if len(values) < 2:
        return [round(v, digits) for v in values * 2]
    found = statistics.quantiles(values, n=4, method="inclusive")
    return [round(found[0], digits), round(found[2], digits)]


def cpu_name() -> str:
    """Such as "AMD EPYC 9R14, 2 cores"."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit, with "+changes" where the working tree differs from it."""
    run = ["git", "-C", str(ROOT)]
    head = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    status = [*run, "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + ("+changes" if changed else "")
