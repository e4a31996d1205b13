"""The process of one contestant: it obeys one line of JSON at a time, and is idle in between."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import CONTESTANTS, Built, Setup
from benchmarks.support.workloads import WORKLOADS

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Worker:
    """One contestant on one workload at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.built: Built | None = None
        self.before: float | None = None

    def load(self, workload: str, data: str, tasks: int | None) -> dict[str, Any]:
        """Build the contestant, on the first `tasks` tasks."""
        o = self.options
        with np.load(data) as found:
            arrays = {n: as_dtype(found[n], o.dtype) for n in found.files}
        weights = {n[2:]: x for n, x in arrays.items() if n.startswith("w.")}
        episodes = {n: x[:tasks] for n, x in arrays.items() if not n.startswith("w.")}
        setup = Setup(WORKLOADS[workload], weights, episodes, o.device, o.dtype, o.tf32)
        module = importlib.import_module(f"benchmarks.contestants.{CONTESTANTS[o.name].module}")
        if o.threads and o.device == "cpu":
            use_threads(o.threads)
        self.built = module.build(o.name, setup)
        return {"versions": self.built.versions}

    def first(self, gradient: str) -> dict[str, Any]:
        """The first call; its gradient is saved, and memory counts from here."""
        assert self.built
        self.before = resident("VmRSS", self.options.device)
        forget_peak(self.options.device)
        start = time.perf_counter()
        result = self.built.run()
        seconds = time.perf_counter() - start
        found = {"seconds": seconds, **self.memory()}
        np.savez(gradient, **self.built.arrays(result))
        return found

    def turn(self, seconds: float) -> dict[str, Any]:
        """Calls, for some time, at least one: the milliseconds of each."""
        assert self.built
        forget_peak(self.options.device)
        end, times = time.perf_counter() + seconds, []
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.built.run()
            times.append(1e3 * (time.perf_counter() - start))
        return {"ms": times, **self.memory()}

    def flop(self) -> dict[str, Any]:
        """Multiplications and additions of the matrix products of one run, by torch's count."""
        from torch.utils.flop_counter import FlopCounterMode

        assert self.built
        with FlopCounterMode(display=False) as counter:
            self.built.run()
        return {"flop": counter.get_total_flops()}

    def memory(self) -> dict[str, float | None]:
        """The peak in MB, over what there was before the first call; None if it is unknown."""
        peak = resident("VmHWM", self.options.device)
        return {"mb": None if peak is None or self.before is None else peak - self.before}


def as_dtype(x: Any, dtype: str) -> Any:
    return x.astype(dtype) if x.dtype.kind == "f" else x


def use_threads(count: int) -> None:
    """For torch; JAX reads the environment."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def resident(field: str, device: str) -> float | None:
    """Memory in MB: VmRSS is now, VmHWM the peak; on a GPU, what its allocator gave out.

    None where the system does not tell.
    """
    if device == "cuda" and "torch" not in sys.modules:
        stats = sys.modules["jax"].local_devices()[0].memory_stats() or {}
        bytes_ = stats.get("bytes_in_use" if field == "VmRSS" else "peak_bytes_in_use")
        return None if bytes_ is None else float(bytes_ / 1e6)
    if device == "cuda":
        cuda = sys.modules["torch"].cuda
        bytes_ = cuda.memory_allocated() if field == "VmRSS" else cuda.max_memory_allocated()
        return float(bytes_ / 1e6)
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return int(found[1]) * 1024 / 1e6 if found else None


def forget_peak(device: str) -> None:
    """The peak counts from now on."""
    if device == "cuda":
        if "torch" in sys.modules:  # JAX's peak is that since its start
            sys.modules["torch"].cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        CLEAR.write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tf32", action="store_true")
    worker = Worker(parser.parse_args())
    # Libraries print: the answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
