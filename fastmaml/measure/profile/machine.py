"""What the machine can do, and how far the process's memory grows."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import is_out_of_memory
from fastmaml.engine.memory.available import free_bytes
from fastmaml.ops import parallel_region
from fastmaml.ops.coverage import native_programs

SIDES = (8192, 4096, 2048, 1024, 512)
"""Of the matrices, of which a GPU gets the largest that there is room for, and a CPU the last."""

SHARE = 8
"""The part of a GPU's free memory that they may take."""


@final
class Product:
    """The fastest of many matrix products, taken between other work.

    They are to be spread over the measurement that their speed is held against, and are short, as
    the machine may have other work too. On several threads of a CPU, one product on all of them
    takes turns with one on each. Where there is no memory for them, or no such product, that is
    said in place of a speed.

    Args:
        device: with the threads that PyTorch uses.
        dtype: of the model.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.size = _side(device, dtype)
        self._rates: list[float] = []
        self._failure = ""
        self._attempt(self._product)  # libraries set up

    def take(self, times: int = 10) -> None:
        """Run and time the product `times` times, and on several threads one on each as often."""
        region = parallel_region() if self.threads > 1 else None
        for _ in range(times):
            self._attempt(lambda: self._rates.append(self._timed(self._product)))
            if region is not None:
                self._attempt(lambda: self._rates.append(self._on_each_thread(region)))

    def _attempt(self, run: Callable[[], object]) -> None:
        if self._failure:
            return
        try:
            run()
        except Exception as error:
            short = is_out_of_memory(error)
            why = "out of memory" if short else " ".join(str(error).split())
            self._failure = f"not measured: {self} failed ({why})"

    @cached_property
    def _factors(self) -> Tensor:
        return torch.ones(2, self.size, self.size, device=self.device, dtype=self.dtype)

    def _product(self) -> None:
        torch.mm(*self._factors)

    def _on_each_thread(self, region: Callable[..., object]) -> float:
        each = self._timed(lambda: region(lambda _: self._product(), self.threads))
        return self.threads * each

    def _timed(self, run: Callable[[], object]) -> float:
        """FLOPs a second of one product."""
        _settle(self.device)
        start = time.perf_counter()
        run()
        _settle(self.device)
        return 2 * self.size**3 / (time.perf_counter() - start)

    @property
    def flops(self) -> float | str:
        """A second, or why that is not known."""
        return self._failure or max(self._rates)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        where = f", {threads}" * (self.device.type == "cpu")
        return f"{self.size} x {self.size} matrix products in {name}{where}, the fastest of many"


def _side(device: torch.device, dtype: torch.dtype) -> int:
    """Of matrices large enough for a GPU, two of which and their product leave room for others."""
    if device.type != "cuda":
        return SIDES[-1]
    room = free_bytes(device) // SHARE
    return next((n for n in SIDES if 3 * n * n * dtype.itemsize <= room), SIDES[-1])


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
    memory, and what programs keep between their runs, goes back to the system before the call, and
    during it as the process is set up: under ``MALLOC_MMAP_THRESHOLD_=65536`` at once.
    """
    clear = Path("/proc/self/clear_refs")
    grown, programs = [], native_programs()
    for _ in range(times):
        try:
            if programs is not None:
                programs.drop_idle_blocks()
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
