"""One fresh process of `cold_start.py`: nothing is imported before the clock runs.

    python -m benchmarks.programs.cold_point CONTESTANT WORKLOAD DEVICE THREADS GRADIENT.npz

Prints seconds as JSON, and leaves the first call's meta-gradient in the file.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

LATER = 0.3  # seconds of calls after the first, at least two


def seconds(action: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = action()
    return time.perf_counter() - start, found


def point(name: str, key: str, device: str, threads: int, gradient: str) -> dict[str, float]:
    """The parts of a cold start, in their order."""
    found: dict[str, float] = {}
    found["import_torch_s"], torch = seconds(lambda: importlib.import_module("torch"))
    found["import_fastmaml_s"], _ = seconds(lambda: importlib.import_module("fastmaml"))
    torch.set_num_threads(threads)
    found["device_s"], _ = seconds(lambda: torch.zeros(1, device=device).item())
    import numpy as np

    from benchmarks.contestants import CONTESTANTS
    from benchmarks.support.reference import setup_of
    from benchmarks.support.workloads import WORKLOADS

    setup = setup_of(WORKLOADS[key], device)
    module = importlib.import_module(f"benchmarks.contestants.{CONTESTANTS[name].module}")
    found["build_s"], built = seconds(lambda: module.build(name, setup))
    found["first_call_s"], result = seconds(built.run)
    np.savez(gradient, **built.arrays(result))
    times: list[float] = []
    while len(times) < 2 or sum(times) < LATER:
        times.append(seconds(built.run)[0])
    found["later_call_s"] = sorted(times)[len(times) // 2]
    return found


def main() -> None:
    name, key, device, threads, gradient = sys.argv[1:]
    print(json.dumps(point(name, key, device, int(threads), gradient)))


if __name__ == "__main__":
    main()
