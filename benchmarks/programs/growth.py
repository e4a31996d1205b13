"""How do time and memory of a meta-step grow with inner steps, tasks and width, by method?

    python -m benchmarks.programs.growth [--workloads mlp conv4] [--device cuda] [--quick]

Every gradient method's result is compared in float64 with a loop written by hand first; then how
far each is from the exact meta-gradient is recorded. One size moves at a time, and the methods take
turns at every point: the median and quartiles of a few meta-steps, and the peak memory of one, in
live tensor bytes on the CPU (`LiveMemory`) and as the allocator tells on CUDA.
All tasks run at once, else chunks would hide what a task costs. Lines are fitted to steps and
tasks, a power to the width, each with its largest relative residual.
Writes benchmarks/results/DEVICE/growth.json and docs/figures/growth.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import fastmaml as fm
from benchmarks.figures.growth import draw, points_along
from benchmarks.figures.plots import plot
from benchmarks.programs.memory_growth import peak_bytes
from benchmarks.support.exactness import EXACT
from benchmarks.support.growth_fits import Fit, line, power
from benchmarks.support.reference import meta_gradient, own_gradient, problem_of, relative, vector
from benchmarks.support.results import ROOT, about, place, quartiles, save, synchronize
from benchmarks.support.workloads import Workload, network

METHODS = {
    "Unrolled": fm.gradients.Unrolled(),
    "Checkpointed": fm.gradients.Checkpointed(),
    "MixedMode": fm.gradients.MixedMode(),
    "Truncated(last=1)": fm.gradients.Truncated(last=1),
    "FirstOrder": fm.gradients.FirstOrder(),
    "Reptile": fm.gradients.Reptile(),
}
WORKLOADS = {
    "mlp": Workload(
        "mlp", "MLP", "MLP 1-256-256-1, 64 examples, 4 tasks, K=4",
        "mlp", 4, 4, 0.01, 64, 64, 1, (1,), 256,
    ),
    "conv4": Workload(
        "conv4", "conv4", "conv4-32 on 28x28, 5-way 5-shot, 4 tasks, K=4",
        "conv4", 4, 4, 0.1, 25, 25, 5, (1, 28, 28), 32,
    ),
}  # fmt: skip
TINY = Workload("mlp", "MLP", "MLP 1-16-16-1, 8 examples, 2 tasks, K=2",
                "mlp", 2, 2, 0.01, 8, 8, 1, (1,), 16)  # fmt: skip
AXES = {"steps": (1, 2, 4, 8, 16), "tasks": (1, 2, 4, 8)}
WIDTHS = {"mlp": (64, 128, 256, 512), "conv4": (16, 32, 64)}
FITS: dict[str, Callable[..., Fit | None]] = {"steps": line, "tasks": line, "width": power}
LEAST_CALLS = 3


class MetaStep:
    """A meta-step with all tasks at once, planned and ready to run."""

    def __init__(self, work: Workload, method: fm.gradients.GradientMethod, device: str) -> None:
        self.problem = p = problem_of(work, device)
        self.maml = fm.MAML(
            p.model, p.lr, steps=p.steps, loss=p.loss, gradient=method, tasks_chunk=work.tasks,
            spot_checks=False,
        )  # fmt: skip
        self.maml.explain(p.episodes)

    def __call__(self) -> None:
        self.maml.zero_grad()
        self.maml(self.problem.episodes).loss.backward()


def errors(work: Workload, device: str, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Of the methods, in float64: from its definition, and from the exact meta-gradient."""
    found = {}
    exact = meta_gradient(problem_of(work, device, "float64"), METHODS["Unrolled"])
    for name in names:
        method = METHODS[name]
        by_hand = meta_gradient(problem_of(work, device, "float64"), method)
        own = own_gradient(problem_of(work, device, "float64"), gradient=method)
        wrong = relative(own, by_hand)
        if not wrong <= EXACT:
            raise SystemExit(f"{work.title}: {name} is {wrong:.1e} off the loop: nothing is timed.")
        a, b = vector(own), vector(exact)
        found[name] = {
            "from_the_loop": wrong,
            "from_the_exact": relative(own, exact),
            "cosine": float(a @ b / (a.norm() * b.norm())),
        }
    return found


def point(work: Workload, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time and memory at one size; out of memory is a result too."""
    sizes = {"steps": work.steps, "tasks": work.tasks, "width": work.filters}
    try:
        # A first call on a tiny workload loads what is loaded late.
        MetaStep(replace(work, steps=1, tasks=1), METHODS[method], options.device)()
        step = MetaStep(work, METHODS[method], options.device)
        peak = peak_bytes(step, options.device)
        times = milliseconds(step, options)
    except torch.OutOfMemoryError as error:
        return {**sizes, "error": f"out of memory: {str(error).splitlines()[0]}"}
    parameters = sum(p.numel() for p in network(work).parameters())
    return {
        **sizes,
        "copy_bytes": 4 * work.tasks * parameters,
        "peak_bytes": peak,
        "median_ms": round(statistics.median(times), 4),
        "quartiles_ms": quartiles(times, 4),
        "calls": len(times),
    }


def milliseconds(step: MetaStep, options: argparse.Namespace) -> list[float]:
    step()
    times: list[float] = []
    while len(times) < LEAST_CALLS or sum(times) < 1e3 * options.seconds:
        synchronize(options.device)
        start = time.perf_counter()
        step()
        synchronize(options.device)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def sizes(work: Workload, axes: dict[str, tuple[int, ...]]) -> Iterator[Workload]:
    """The workload with one size moved at a time; the middle, where the axes meet, once."""
    field = {"steps": "steps", "tasks": "tasks", "width": "filters"}
    seen = set()
    for axis, values in axes.items():
        for value in values:
            moved = replace(work, **{field[axis]: value})
            if moved not in seen:
                seen.add(moved)
                yield moved


def fitted(points: list[dict[str, Any]], work: Workload, axes: Any) -> dict[str, Any]:
    """By axis, the laws of time and of memory along it."""
    found: dict[str, Any] = {}
    for axis in axes:
        along = points_along(axis, points, asdict(work))
        if axis == "steps":  # with a single step the query pass may be the peak
            along = [p for p in along if p["steps"] >= 2]
        x = [p[axis] for p in along]
        found[axis] = {}
        for name, key in (("time_ms", "median_ms"), ("memory_bytes", "peak_bytes")):
            fit = FITS[axis](x, [p[key] for p in along])
            found[axis][name] = fit and fit._asdict()
    return found


def measured(work: Workload, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result so far, after every size: an interrupted run keeps what was done."""
    axes = {**AXES, "width": WIDTHS[work.key]}
    if options.quick:
        axes = {"steps": (1, 2, 3, 4), "tasks": (1, 2, 3), "width": (8, 16, 24)}
    found = errors(work, options.device, options.methods)
    methods = {name: {**off, "points": []} for name, off in found.items()}
    result = {"workload": asdict(work), "axes": axes, "methods": methods}
    for moved in sizes(work, axes):
        for name, found in methods.items():
            found["points"].append(point(moved, name, options))
            print(work.key, name, json.dumps(found["points"][-1]), flush=True)
        yield result
    for found in methods.values():
        found["fits"] = fitted(found["points"], work, axes)
    yield result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seconds", type=float, default=0.3, help="of calls, at every point")
    parser.add_argument("--quick", action="store_true", help="a tiny workload, few points")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--png", type=Path, help="where the plot goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.seconds = 0.01 if options.quick else options.seconds
    path = place(options.json, options.device, "growth", options.quick)
    done: list[dict[str, Any]] = []
    works = [TINY] if options.quick else [WORKLOADS[key] for key in options.workloads]
    head = {**about(options.device), "quick": options.quick, "seconds": options.seconds}
    for work in works:
        for result in measured(work, options):
            save(path, {**head, "workloads": [*done, result]})
        done.append(result)
    docs = ROOT / "docs" / "figures" / "growth.png"
    plot(path, options.png or (path.with_suffix(".png") if options.quick else docs), draw)


if __name__ == "__main__":
    main()
