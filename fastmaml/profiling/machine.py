"""What the machine can do, and how far the process's memory grows."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

import torch

from fastmaml.ops import parallel_region


@final
class Product:
    """The fastest of many matrix products, taken between other work.

    They are to be spread over the measurement that their speed is held against, and are short, as
    the machine may have other work too. On several threads of a CPU, one product on all of them
    takes turns with one on each.

    Args:
        device: with the threads that PyTorch uses.
        dtype: of the model.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.size = 8192 if device.type == "cuda" else 512
        self._factors = torch.ones(2, self.size, self.size, device=device, dtype=dtype)
        self._rates: list[float] = []
        torch.mm(*self._factors)  # libraries set up

    def take(self, times: int = 10) -> None:
        """Run and time some."""
        region = parallel_region() if self.threads > 1 else None
        for _ in range(times):
            self._rates.append(self._timed(lambda: torch.mm(*self._factors)))
            if region is not None:
                each = self._timed(lambda: region(lambda _: self._product(), self.threads))
                self._rates.append(self.threads * each)

    def _product(self) -> None:
        torch.mm(*self._factors)

    def _timed(self, run: Callable[[], object]) -> float:
        """FLOPs a second of one product."""
        _settle(self.device)
        start = time.perf_counter()
        run()
        _settle(self.device)
        return 2 * self.size**3 / (time.perf_counter() - start)

    @property
    def flops(self) -> float:
        """A second."""
        return max(self._rates)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        where = f", {threads}" * (self.device.type == "cpu")
        return f"{self.size} x {self.size} matrix products in {name}{where}, the fastest of many"


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


RESET = "5"
"""Written to clear_refs, it sets the peak of the resident memory to what is resident now."""


def resident_growth(run: Callable[[], object], times: int = 5) -> int | str:
    """Bytes by which a call raises the process's resident memory at its peak, or why unknown.

    The median of some calls.

    The peak is the operating system's (VmHWM of Linux), which sees scratch space within kernels as
    well as what an allocator keeps of freed memory, so it is at least what tensors need. Freed
    memory goes back to the system before the call, and during it as the process is set up: under
    ``MALLOC_MMAP_THRESHOLD_=65536`` at once.
    """
    clear = Path("/proc/self/clear_refs")
    grown = []
    for _ in range(times):
        try:
            ctypes.CDLL(None).malloc_trim(0)
            clear.write_text(RESET)
        except (OSError, AttributeError) as error:
            return f"not measured: it needs Linux, glibc and {clear} ({type(error).__name__})"
        before = _status_bytes("VmRSS")
        run()
        grown.append(_status_bytes("VmHWM") - before)
    return int(statistics.median(grown))


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status has no line {name}.")
    return 1024 * int(found[1])
