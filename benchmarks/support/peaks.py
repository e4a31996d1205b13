"""What a machine can do: multiply-adds a second in float32, and bytes copied a second."""

from __future__ import annotations

import ctypes
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.results import synchronize

SOURCE = Path(__file__).parent / "fma_peak.cpp"


def peaks(device: str, threads: int) -> dict[str, Any]:
    """GFLOP/s, with how they were measured, and GB/s of a copy, read and write both counted."""
    gflops, how = fma_peak(threads) if device == "cpu" else (product_peak(device), PRODUCT)
    if gflops is None:
        gflops, how = product_peak(device), PRODUCT
    return {"gflops": round(gflops, 1), "how": how, "gbytes_per_s": round(copy_peak(device), 1)}


PRODUCT = "a matrix product of torch, float32"


def fma_peak(threads: int) -> tuple[float | None, str]:
    """Of independent vector multiply-adds in registers; None without a C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None, ""
    with tempfile.TemporaryDirectory() as place:
        library = Path(place) / "peak.so"
        flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
        run = ctypes.CDLL(str(library)).multiply_adds
        run.restype, run.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_int64]
        rates = []
        for _ in range(7):
            start = time.perf_counter()
            operations = run(threads, 20_000_000)
            rates.append(operations / (time.perf_counter() - start) / 1e9)
    return max(rates), "multiply-adds in registers, float32"


def product_peak(device: str) -> float:
    n = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device).unbind()
    return 2 * n**3 / seconds(lambda: a @ b, device) / 1e9


def copy_peak(device: str) -> float:
    """Of a quarter of a gigabyte, which no cache holds; of a gigabyte on a GPU."""
    numbers = (1 << 28) // (4 if device == "cpu" else 1)
    source, target = torch.ones(2, numbers, device=device).unbind()
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device) / 1e9


def seconds(run: Callable[[], Any], device: str) -> float:
    """The median of a few calls."""
    times = []
    for _ in range(9):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
