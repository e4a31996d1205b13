"""Where results lie, and what is recorded with each of them."""

from __future__ import annotations

import datetime
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.origin import PATHS, ROOT, commit, cpu_name, save

__all__ = [
    "PATHS",
    "ROOT",
    "about",
    "commit",
    "cpu_name",
    "folder",
    "place",
    "quartiles",
    "save",
    "synchronize",
]


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
