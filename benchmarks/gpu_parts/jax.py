"""The same meta-steps in JAX, where this Python has it; torch makes the numbers, on the CPU."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.contestants import has_jax
from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.steps import BUDGET, FIRST, QUICK, ROUNDS, TURN, built, setup_of
from benchmarks.gpu_parts.timing import summary
from benchmarks.support.exactness import allowed, difference, read
from benchmarks.support.workloads import WORKLOADS, arrays

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
        if all(row["workload"] != key for row in answer.found["rows"]):
            answer.row(workload=key, contestants={})
        row = next(row for row in answer.found["rows"] if row["workload"] == key)
        if "told" in row:
            continue
        found = row["contestants"]
        setup = setup_of(WORKLOADS[key], answer.device, "float32", arrays(WORKLOADS[key]))
        for name in NAMES:
            what = f"{key}: {name}"
            if (answer.left > 5 or answer.small) and answer.begins(what):
                with answer.guarding(what):
                    measured(answer, name, setup, read(exact), found.setdefault(name, {}))
        row["told"] = True
        told = (f"{n[4:]} {r['median']:.2f} ms" for n, r in found.items() if "median" in r)
        answer.say(f"{key}: {', '.join(told) or 'not measured'}")


def measured(
    answer: Answer, name: str, setup: Any, exact: dict[str, Any], found: dict[str, Any]
) -> None:
    """A contestant's first call, error and times in milliseconds, written as they are found."""
    work = setup.work
    contestant = built(name, setup)
    start = time.perf_counter()
    result = contestant.run()
    first = time.perf_counter() - start
    gradient = {n: np.asarray(x) for n, x in contestant.arrays(result).items()}
    error = difference(gradient, exact)
    found |= {"first_call_s": round(first, 3), "difference": error, **contestant.versions}
    if not error <= allowed(work, False):
        answer.fail(f"{work.key}: {name} is off by {error:.1e}")
        return
    times: list[float] = []
    end = time.perf_counter() + BUDGET
    while len(times) < (2 if answer.small else ROUNDS) and (not times or time.perf_counter() < end):
        begin, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - begin < TURN:
            contestant.run()
            calls += 1
        times.append(1e3 * (time.perf_counter() - begin) / calls)
        found |= summary(times)
        answer.write()
