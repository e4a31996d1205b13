"""What does an inner step cost where only a part of the model adapts?

    python -m benchmarks.programs.partial_scopes [--steps 1 5 10] [--device cuda] [--quick]

A conv4 and a 2-layer transformer of which the head adapts (ANIL) or, of the transformer, the last
layer and what follows it. Beside fastmaml stand two loops by hand: one that calls the model at
every inner step, as one writes it first, and for the head one that computes the features once, as
one writes it with care. Meta-gradients are compared in float64 first; then the contestants take
turns. Memory is the peak of live tensors in a meta-step. Writes
benchmarks/results/DEVICE/partial_scopes.json after every row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from benchmarks.contestants.torch_problem import Problem
from benchmarks.support.reference import Parameters, batch_loss, problem_of, relative, sgd_step
from benchmarks.support.results import about, place, save, synchronize
from benchmarks.support.workloads import WORKLOADS, Workload
from fastmaml.measure.profile import LiveMemory

STEPS = (1, 5, 10)
WHOLE, ONCE, OURS = "loop by hand", "loop by hand, features once", "fastmaml"
SUBJECTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "conv4-head": ("omniglot-20w", "the head", ("classifier.*",)),
    "transformer-head": ("transformer", "the head", ("classifier.*",)),
    "transformer-last": (
        "transformer",
        "the last layer, norm and head",
        ("layers.1.*", "norm.*", "classifier.*"),
    ),
}
"""Workload, what adapts in words, and as patterns of names; a head has one."""
PARTS = ("support", "query")


def adapting(p: Problem, patterns: tuple[str, ...]) -> list[str]:
    return [n for n, _ in p.model.named_parameters() if any(fnmatchcase(n, x) for x in patterns)]


def whole(p: Problem, names: list[str]) -> Parameters:
    """One task at a time; every inner step calls the model."""
    theta = dict(p.model.named_parameters())
    losses = []
    for task in p.episodes:
        adapted = {n: theta[n] for n in names}
        for _ in range(p.steps):
            loss = batch_loss(p.model, p.loss, theta | adapted, task.support)
            adapted = sgd_step(adapted, loss, p.lr, first_order=False)
        losses.append(batch_loss(p.model, p.loss, theta | adapted, task.query))
    return gradient(losses, theta)


def once(p: Problem, names: list[str]) -> Parameters:
    """One task at a time; the features of the support set are computed once."""
    theta = dict(p.model.named_parameters())
    layer = p.model.get_submodule(names[-1].rpartition(".")[0])
    losses = []
    for task in p.episodes:
        features = {part: heard(p.model, layer, theta, part_of(task, part)) for part in PARTS}
        weight, bias = (theta[n] for n in names)
        for _ in range(p.steps):
            y = nn.functional.linear(features["support"], weight, bias)
            loss = p.loss(y, task.support.targets[0])
            gw, gb = torch.autograd.grad(loss, (weight, bias), create_graph=True)
            weight, bias = weight - p.lr * gw, bias - p.lr * gb
        y = nn.functional.linear(features["query"], weight, bias)
        losses.append(p.loss(y, task.query.targets[0]))
    return gradient(losses, theta)


def part_of(task: fm.Episodes, part: str) -> Tensor:
    found: Tensor = getattr(task, part).inputs[0]
    return found


def heard(model: nn.Module, layer: nn.Module, theta: Parameters, x: Tensor) -> Tensor:
    """What the last layer is given."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    functional_call(model, {**theta, **buffers}, (x,))
    handle.remove()
    return found[0]


def gradient(losses: list[Tensor], theta: Mapping[str, Tensor]) -> Parameters:
    found = torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()))
    return dict(zip(theta, found, strict=True))


def ours(p: Problem, names: list[str]) -> Callable[[], Parameters]:
    scope, spot_checks = lambda name, _: name in names, False  # memory of a call like most
    given = {"scope": scope, "spot_checks": spot_checks}
    maml = fm.MAML(p.model, p.lr, steps=p.steps, loss=p.loss, **given)

    def step() -> Parameters:
        maml.zero_grad()
        maml(p.episodes).loss.backward()
        return {n: w.grad for n, w in p.model.named_parameters() if w.grad is not None}

    return step


def contestants(p: Problem, key: str) -> dict[str, Callable[[], Parameters]]:
    names = adapting(p, SUBJECTS[key][2])
    found: dict[str, Callable[[], Parameters]] = {WHOLE: lambda: whole(p, names)}
    if len(names) == 2:
        found[ONCE] = lambda: once(p, names)
    return found | {OURS: ours(p, names)}


def errors(work: Workload, key: str, device: str) -> dict[str, float]:
    """How far each meta-gradient is from the first loop's, in float64."""
    steps = contestants(problem_of(work, device, "float64"), key)
    first = steps[WHOLE]()
    return {name: relative(step(), first) for name, step in steps.items()}


def measured(work: Workload, key: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds turn by turn, and bytes."""
    steps = contestants(problem_of(work, options.device), key)
    for step in steps.values():
        for _ in range(2):  # recorded by then
            step()
    turns: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            synchronize(options.device)
            start = time.perf_counter()
            step()
            synchronize(options.device)
            turns[name].append(time.perf_counter() - start)
    rows = {}
    for name, step in steps.items():
        quartiles = statistics.quantiles(turns[name], n=4)
        rows[name] = {
            "median_s": statistics.median(turns[name]),
            "quartiles_s": [quartiles[0], quartiles[2]],
            "peak_bytes": peak(step, options.device),
        }
    return rows


def peak(step: Callable[[], Any], device: str) -> int:
    """Of live tensors that one meta-step made."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with LiveMemory() as memory:
        step()
    return memory.peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two tasks, small networks, few turns")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = place(options.json, options.device, "partial_scopes", options.quick)
    rounds = options.rounds = 2 if options.quick else options.rounds
    result: dict[str, Any] = {**about(options.device), "quick": options.quick, "rounds": rounds}
    result["rows"] = []
    for key in options.subjects:
        source, words, _ = SUBJECTS[key]
        for steps in options.steps:
            work = replace(WORKLOADS[source], steps=steps)
            if options.quick:
                work = replace(work, tasks=2, filters=4)
            title = work.title.rpartition(", K=")[0]
            row = {"subject": key, "title": title, "adapts": words, "steps": steps}
            with sdpa_kernel(SDPBackend.MATH):  # for the loops: others have no second derivative
                row["errors"] = errors(work, key, options.device)
                row["contestants"] = measured(work, key, options)
            result["rows"].append(row)
            print(title, words, steps, row["errors"], row["contestants"], flush=True)
            save(path, result)


if __name__ == "__main__":
    main()
