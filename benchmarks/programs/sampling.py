"""Episodes per second that `EpisodeSampler` makes on one core.

The data has the shape of Omniglot's 1,200 training characters with their rotations: 4,800 classes
of 20 images of 28x28, held as uint8 and turned into float32 per episode; the pixels are random,
which costs the same. Each figure is the median of several rounds; the range shows how busy the
machine was.

    python -m benchmarks.programs.sampling [--json FILE] [--rounds 9] [--device cuda]

Writes benchmarks/results/DEVICE/sampling.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.results import about, place, save, synchronize
from fastmaml.episodes import EpisodeSampler

CLASSES, EXAMPLES = 4800, 20
WORKLOADS = (
    {"ways": 5, "shots": 1, "queries": 1, "tasks": 32},
    {"ways": 5, "shots": 5, "queries": 15, "tasks": 32},
    {"ways": 20, "shots": 1, "queries": 1, "tasks": 16},
    {"ways": 20, "shots": 5, "queries": 15, "tasks": 16},
)


def measure(sampler: EpisodeSampler, rounds: int, seconds: float, device: str) -> list[float]:
    """Episodes per second of each round."""
    rates = []
    for _ in range(rounds + 1):
        meta_batches, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            sampler.sample()
            synchronize(device)
            meta_batches += 1
        rates.append(meta_batches * sampler.tasks / elapsed)
    return rates[1:]  # the first one warms up


def run(rounds: int, seconds: float, device: str) -> dict[str, Any]:
    """All workloads, with what they ran on."""
    torch.set_num_threads(1)
    images = torch.randint(2, (CLASSES * EXAMPLES, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(EXAMPLES)
    results = []
    for numbers in WORKLOADS:
        sampler = EpisodeSampler(
            (images, labels), **numbers, device=device, transform=torch.Tensor.float
        )
        rates = measure(sampler, rounds, seconds, device)
        figures = {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}
        results.append({**numbers, **{name: round(rate) for name, rate in figures.items()}})
    return {
        "benchmark": "sampling",
        "unit": "episodes per second",
        **about(device),
        "data": {"classes": CLASSES, "examples": EXAMPLES, "image": [1, 28, 28]},
        "rounds": rounds,
        "seconds": seconds,
        "results": results,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    head = ("ways", "shots", "queries", "tasks", "median", "least", "most")
    rows = [head, *([f"{row[name]:,}" for name in head] for row in report["results"])]
    lines = ["  ".join(f"{cell:>8}" for cell in row) for row in rows]
    where = f"{report['device']}, {report['threads']} thread, torch {report['torch']}"
    return "\n".join([f"{report['unit']}; {where}", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="where the report goes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a round")
    arguments = parser.parse_args()
    report = run(arguments.rounds, arguments.seconds, arguments.device)
    print(table(report))
    save(place(arguments.json, arguments.device, "sampling"), report)


if __name__ == "__main__":
    main()
