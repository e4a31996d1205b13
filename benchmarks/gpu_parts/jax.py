"""The same meta-steps in JAX, where this Python has it; torch makes the numbers, on the CPU."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from contestants import has_jax
from exactness import allowed, difference, read
from workloads import WORKLOADS, arrays

from gpu_parts.answer import Answer
from gpu_parts.steps import BUDGET, FIRST, QUICK, ROUNDS, TURN, built, setup_of
from gpu_parts.timing import summary

NAMES = ("JAX jit of vmap", "JAX jit of lax.map")


def main(answer: Answer) -> None:
    """Every workload that the other part has measured."""
    if not has_jax():
        answer.found["skipped"] = "JAX is not installed"
        answer.say("JAX is not installed")
        return
    for key in QUICK if answer.small else FIRST:
        exact = answer.place / f"{key}.npz"
        if not exact.exists():
            answer.found.setdefault("not_compared", []).append(key)
            continue
        row: dict[str, Any] = {"workload": key, "contestants": {}}
        setup = setup_of(WORKLOADS[key], answer.device, "float32", arrays(WORKLOADS[key]))
        for name in NAMES:
            if answer.left > 5 or answer.small:
                row["contestants"][name] = measured(answer, name, setup, read(exact))
        answer.row(**row)
        told = (
            f"{n[4:]} {r['median']:.2f} ms" for n, r in row["contestants"].items() if "median" in r
        )
        answer.say(f"{key}: {', '.join(told)}")


def measured(answer: Answer, name: str, setup: Any, exact: dict[str, Any]) -> dict[str, Any]:
    """A contestant's first call, error and times in milliseconds."""
    work = setup.work
    try:
        contestant = built(name, setup)
        start = time.perf_counter()
        result = contestant.run()
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"[:300]
        answer.fail(f"{work.key}: {name}: {refused}")
        return {"refused": refused}
    first = time.perf_counter() - start
    gradient = {n: np.asarray(x) for n, x in contestant.arrays(result).items()}
    error = difference(gradient, exact)
    found = {"first_call_s": round(first, 3), "difference": error, **contestant.versions}
    if not error <= allowed(work, False):
        answer.fail(f"{work.key}: {name} is off by {error:.1e}")
        return found
    times: list[float] = []
    end = time.perf_counter() + BUDGET
    while len(times) < (2 if answer.small else ROUNDS) and (not times or time.perf_counter() < end):
        begin, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - begin < TURN:
            contestant.run()
            calls += 1
        times.append(1e3 * (time.perf_counter() - begin) / calls)
    return {**found, **summary(times)}
