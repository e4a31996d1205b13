"""What does a meta-step cost, by gradient method, inner steps, executor and backend?

Every row's meta-gradient is compared in float64 with the loop written by hand, then in float32
within what rounding does, before it is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import fastmaml as fm
from benchmarks.suites.conftest import require
from benchmarks.support.exactness import EXACT, ROUNDED
from benchmarks.support.reference import Parameters, meta_gradient, problem_of, relative
from benchmarks.support.workloads import Workload

METHODS = {
    "Unrolled": fm.gradients.Unrolled(),
    "Checkpointed": fm.gradients.Checkpointed(),
    "MixedMode": fm.gradients.MixedMode(),
    "Truncated": fm.gradients.Truncated(last=1),
    "FirstOrder": fm.gradients.FirstOrder(),
    "Reptile": fm.gradients.Reptile(),
}
EXACT_ONES = ("Unrolled", "Checkpointed", "MixedMode")
WORKLOADS = {
    "sinusoid": Workload(
        "sinusoid", "sinusoid", "sinusoid MLP 1-40-40-1, 25 tasks, 10 shots",
        "mlp", 25, 1, 0.01, 10, 10, 1, (1,),
    ),
    "conv4": Workload(
        "conv4", "conv4", "conv4-32, 5-way 1-shot, 8 tasks of 28x28",
        "conv4", 8, 1, 0.1, 5, 5, 5, (1, 28, 28), 32,
    ),
}  # fmt: skip
SLOW = "Inductor takes minutes to begin: see benchmarks/programs/cold_start.py --slow"


def rows(device: str, quick: bool) -> list[dict[str, Any]]:
    there = ["reference", *(["cpp"] if device == "cpu" else ["cuda", "triton"])]
    found = [
        {"workload": work, "method": method, "steps": steps, "executor": executor, "backend": b}
        for work in WORKLOADS
        for method in (("Unrolled", "MixedMode", "FirstOrder") if quick else METHODS)
        for steps in ((3,) if quick else (1, 5))
        for executor in ("eager", "captured")
        # One by one the ops' functions cost more than their kernels save: nobody runs them so.
        for b in (there if executor == "captured" else ["reference"])
    ]
    return [*found, found[0] | {"executor": "compiled", "backend": "reference"}]


@functools.lru_cache(maxsize=8)
def expected(work: Workload, kind: str, device: str) -> Parameters:
    return meta_gradient(problem_of(work, device, "float64"), METHODS[kind])


def gradient_of(maml: fm.MAML, episodes: fm.Episodes) -> Callable[[], Parameters]:
    parameters = dict(maml.module.named_parameters())

    def run() -> Parameters:
        maml.zero_grad()
        maml(episodes).loss.backward()
        return {n: w.grad for n, w in parameters.items() if w.grad is not None}

    return run


def test_meta_step(
    workload: str,
    method: str,
    steps: int,
    executor: str,
    backend: str,
    device: str,
    timed: Callable[..., None],
) -> None:
    if executor == "compiled":
        pytest.skip(SLOW)
    require(backend)
    work = replace(WORKLOADS[workload], steps=steps)
    kind = "Unrolled" if method in EXACT_ONES else method
    settings = {"gradient": METHODS[method], "executor": executor, "backend": backend}
    errors = {}
    for dtype in ("float64", "float32"):
        p = problem_of(work, device, dtype)
        maml = fm.MAML(p.model, p.lr, steps=p.steps, loss=p.loss, **settings)
        run = gradient_of(maml, p.episodes)
        errors[dtype] = relative(run(), expected(work, kind, device))
    assert errors["float64"] <= EXACT
    assert errors["float32"] <= ROUNDED[work.network]
    timed(run, title=work.title, difference=errors)
