"""What runs here: versions, devices, and which parts of fastmaml are available."""

from __future__ import annotations

import platform

import torch

from fastmaml import ops
from fastmaml._version import __version__


def backends() -> dict[str, str]:
    """Of every backend of the ops, whether it is available, or why not."""
    return ops.status()


def versions() -> dict[str, str]:
    """The versions of fastmaml, Python, PyTorch and what PyTorch was built for."""
    return {
        "fastmaml": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none (a CPU build of PyTorch)",
    }


def describe_device(device: torch.device) -> str:
    """The device's name, and for a CPU how many threads PyTorch uses."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        kind = f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
        return f"cpu: {kind}, {torch.get_num_threads()} threads"
    return str(device)


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(count))]
