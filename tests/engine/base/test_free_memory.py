"""How much memory is free, where control groups limit it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastmaml.engine.memory.available import UNKNOWN, free_bytes, free_host_bytes

GIB = 2**30
UNLIMITED = 9223372036854771712  # what the first version says


def machine(root: Path, files: dict[str, object]) -> Path:
    """A root folder with 64 GiB available, and these files."""
    for name, content in {"proc/meminfo": f"MemAvailable: {64 * 2**20} kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def second(folder: str, limit: object, used: int, idle: int = 0) -> dict[str, object]:
    place = f"sys/fs/cgroup{folder}"
    stat = f"anon 5\ninactive_file {idle}\nactive_file 7"
    return {
        f"{place}/memory.max": limit, f"{place}/memory.current": used, f"{place}/memory.stat": stat,
    }  # fmt: skip


def first(folder: str, limit: object, used: int, idle: int = 0) -> dict[str, object]:
    place = f"sys/fs/cgroup/memory{folder}"
    return {
        f"{place}/memory.limit_in_bytes": limit, f"{place}/memory.usage_in_bytes": used,
        f"{place}/memory.stat": f"inactive_file 3\ntotal_inactive_file {idle}",
    }  # fmt: skip


OWN = {"proc/self/cgroup": "0::/\n"}
JOB = {"proc/self/cgroup": "0::/jobs/mine\n"}
OLD = {"proc/self/cgroup": "12:pids:/docker/a1\n9:cpu,memory:/docker/a1\n1:name=systemd:/\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64 * GIB),
        ({**OWN, **second("", 8 * GIB, 3 * GIB)}, 5 * GIB),
        ({**OWN, **second("", 8 * GIB, 7 * GIB, idle=4 * GIB)}, 5 * GIB),
        ({**OWN, **second("", "max", 3 * GIB)}, 64 * GIB),
        ({**OWN, **second("", 256 * GIB, 0)}, 64 * GIB),
        ({**OWN, **second("", 2 * GIB, 3 * GIB)}, 0),
        ({**JOB, **second("/jobs/mine", 8 * GIB, GIB)}, 7 * GIB),
        ({**JOB, **second("/jobs/mine", "max", GIB), **second("/jobs", 4 * GIB, GIB)}, 3 * GIB),
        ({**OLD, **first("/docker/a1", 6 * GIB, GIB, idle=GIB)}, 6 * GIB),
        ({**OLD, **first("", 6 * GIB, GIB)}, 5 * GIB),
        ({**OLD, **first("", UNLIMITED, GIB)}, 64 * GIB),
        ({**OWN, **second("", "garbage", 3)}, 64 * GIB),
    ],
)
def test_the_least_counts(files: dict[str, object], expected: int, tmp_path: Path) -> None:
    assert free_host_bytes(machine(tmp_path, files)) == expected


def test_where_nothing_is_known(tmp_path: Path) -> None:
    assert free_host_bytes(tmp_path) == UNKNOWN


def test_here() -> None:
    assert free_bytes(torch.device("cpu")) > 0
