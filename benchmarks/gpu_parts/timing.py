"""Times and memory on a device, or on a CPU where there is none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

CALLS = 10  # of a CUDA graph
WARM_UPS = 2  # rounds that do not count


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def several(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    """A CUDA graph of some calls, so that Python does not count; on a CPU the function itself.

    On the current stream: a backward pass runs on that of its forward pass.
    """
    if device != "cuda":
        return run
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(CALLS):
            run()
    return graph.replay


def microseconds(ready: Callable[[], Any], device: str) -> float:
    """Of one call of what `several` made."""
    if device != "cuda":
        start = time.perf_counter()
        ready()
        return 1e6 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    ready()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / CALLS


def in_turns(
    runs: dict[str, Callable[[], Any]], device: str, rounds: int
) -> dict[str, dict[str, Any]]:
    """Median and quartiles in microseconds of each; they take turns within a round."""
    stream = torch.cuda.Stream() if device == "cuda" else None
    with torch.cuda.stream(stream):
        ready = {name: several(run, device) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in ready}
        for number in range(rounds + WARM_UPS):
            for name, one in ready.items():
                taken = microseconds(one, device)
                if number >= WARM_UPS:
                    times[name].append(taken)
    return {name: summary(found) for name, found in times.items()}


def summary(times: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, high = (times * 2)[:2]
    if len(times) > 1:
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "median": round(statistics.median(times), 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "turns": len(times),
    }


class Peak:
    """A context: how much more memory the device had given out at most; None on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.mb: float | None = None

    def __enter__(self) -> Peak:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            most = torch.cuda.max_memory_allocated()
            self.mb = round((most - self.before) / 1e6, 1)
