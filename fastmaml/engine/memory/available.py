"""How much memory may be had now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

UNKNOWN = 4 * 2**30
"""Where the operating system does not say, assume a small machine."""

ROOT = Path("/")


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + _reusable(device)
    return free_host_bytes(ROOT)


def _reusable(device: torch.device) -> int:
    """What PyTorch holds and has not given out, but for the pools of CUDA graphs."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot(include_traces=False)
        if segment["device"] == index and tuple(segment["segment_pool_id"]) == (0, 0)
    )


def free_host_bytes(root: Path) -> int:
    """The least of what Linux has, and of what each control group leaves that the process is in.

    Containers and batch systems limit memory by control groups, of which there are two versions.

    Args:
        root: under which ``proc`` and ``sys`` are.
    """
    found = [*_of_the_machine(root), *_of_groups(root)]
    return max(0, min(found, default=UNKNOWN))


def _of_the_machine(root: Path) -> Iterator[int]:
    available = re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"))
    if available:
        yield 1024 * int(available[1])


def _of_groups(root: Path) -> Iterator[int]:
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if not path:
            continue
        if not kinds:  # the second version
            files, place = ("memory.max", "memory.current", "inactive_file"), top
        elif "memory" in kinds.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            place = top / "memory"
        else:
            continue
        # In a container the path may be that of the host: then the limits are at the top.
        own = place / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(place):
                yield from _left(folder, *files)


def _left(folder: Path, limit: str, used: str, cache: str) -> Iterator[int]:
    """The limit less what is used; files that are cached and idle make room when it is wanted."""
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if most.isdecimal() and now.isdecimal():
        idle = re.search(rf"^{cache} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
        yield int(most) - int(now) + (int(idle[1]) if idle else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
