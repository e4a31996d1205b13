"""One exact meta-step of each workload: fastmaml beside a loop, vmap and its CUDA graph.

All in one process, as a GPU's contestants do not share caches; each takes turns in rounds, and is
timed only after its gradient was compared with that of the loop in float64.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import CONTESTANTS, LOOP, LOOP_FIRST, Built, Setup
from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.timing import Peak, summary, synchronize
from benchmarks.support.exactness import allowed, difference
from benchmarks.support.workloads import WORKLOADS, Workload, arrays

FIRST = ("omniglot-5w", "sinusoid-1", "transformer", "omniglot-20w", "images-32", "sinusoid-5")
QUICK = ("sinusoid-1",)
NAMES = {
    "cuda": (
        "fastmaml", "fastmaml, cuda kernels", "fastmaml captured, reference ops",
        "fastmaml, first order", "torch.func vmap", LOOP, LOOP_FIRST, "CUDA graph of vmap",
    ),
    "cpu": ("fastmaml", "fastmaml, first order", "torch.func vmap", LOOP, LOOP_FIRST),
}  # fmt: skip
RIVALS = ("torch.func vmap", "CUDA graph of vmap", "JAX jit of vmap", "JAX jit of lax.map")
ROUNDS, TURN, BUDGET = 7, 0.1, 2.5
"""Rounds; seconds of calls in each, at least one; seconds for all of them."""

ENOUGH = 10.0  # seconds for those that have begun to take turns


def main(answer: Answer) -> None:
    """Every workload while there is time, the one with a target first."""
    broke = answer.found.get("broke", [])
    for key in QUICK if answer.small else FIRST:
        if key in broke or key in answer.found.get("done", []):
            continue
        if answer.left < 8 and not answer.small:
            answer.found.setdefault("not_reached", []).append(key)
            continue
        with answer.guarding(key):
            measured(answer, WORKLOADS[key])
        answer.found.setdefault("done", []).append(key)
        answer.write()


def setup_of(work: Workload, device: str, dtype: str, given: dict[str, Any]) -> Setup:
    """Of the arrays of a workload."""
    cast = {n: x.astype(dtype) if x.dtype.kind == "f" else x for n, x in given.items()}
    weights = {n[2:]: x for n, x in cast.items() if n.startswith("w.")}
    episodes = {n: x for n, x in cast.items() if not n.startswith("w.")}
    return Setup(work, weights, episodes, device, dtype, tf32=False)


def built(name: str, setup: Setup) -> Built:
    """A contestant."""
    module = __import__(f"benchmarks.contestants.{CONTESTANTS[name].module}", fromlist=["build"])
    found: Built = module.build(name, setup)
    return found


def measured(answer: Answer, work: Workload) -> None:
    """A row: every contestant's first call, error, memory and times.

    Without those that broke an earlier process, which left a row that is not whole.
    """
    rows = answer.found["rows"]
    rows[:] = [row for row in rows if row["workload"] != work.key]
    broke = set(answer.found.get("broke", []))
    given = arrays(work)
    exact = {}
    for name in (LOOP, LOOP_FIRST):
        loop = built(name, setup_of(work, answer.device, "float64", given))
        exact[CONTESTANTS[name].order] = loop.arrays(loop.run())
    np.savez(answer.place / f"{work.key}.npz", **exact[2])
    row: dict[str, Any] = {
        "workload": work.key, "title": work.title, "contestants": {},
        "first_order_difference": difference(exact[1], exact[2]),
    }  # fmt: skip
    running: dict[str, Callable[[], Any]] = {}
    setup = setup_of(work, answer.device, "float32", given)
    answer.row(**row)
    row = answer.found["rows"][-1]  # what is added from here on is in what is written
    for name in NAMES[answer.device]:
        if answer.left < ENOUGH and running and not answer.small:
            break  # those that have begun come first
        if broke & {f"{work.key}: {name}", f"{work.key}: {name}, in a turn"}:
            continue
        with answer.guarding(f"{work.key}: {name}"):
            found, run = begun(name, setup, exact[CONTESTANTS[name].order], work)
            row["contestants"][name] = found
            if found["difference"] <= allowed(work, False):
                running[name] = run
            else:
                answer.fail(f"{work.key}: {name} is off by {found['difference']:.1e}")
        answer.write()
    take_turns(running, row["contestants"], answer, work)
    answer.say(line(row))
    running.clear()
    gc.collect()
    if answer.device == "cuda":
        torch.cuda.empty_cache()


def begun(
    name: str, setup: Setup, exact: dict[str, Any], work: Workload
) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Its first call, and what runs it."""
    contestant = built(name, setup)
    synchronize(setup.device)
    with Peak(setup.device) as peak:
        start = time.perf_counter()
        result = contestant.run()
        seconds = time.perf_counter() - start
    error = difference(contestant.arrays(result), exact)
    found = {
        "order": CONTESTANTS[name].order, "first_call_s": round(seconds, 3),
        "first_call_mb": peak.mb, "difference": error,
    }  # fmt: skip
    with Peak(setup.device) as peak:
        contestant.run()
    return {**found, "step_mb": peak.mb}, contestant.run


def take_turns(
    running: dict[str, Callable[[], Any]], rows: dict[str, Any], answer: Answer, work: Workload
) -> None:
    """Rounds; the milliseconds of each one's turns go to its row."""
    times: dict[str, list[float]] = {name: [] for name in running}
    spent = dict.fromkeys(running, 0.0)
    for _ in range(2 if answer.small else ROUNDS):
        for name, run in list(running.items()):
            if times[name] and (spent[name] > BUDGET or answer.left < 5):
                continue
            calls = 0
            with answer.guarding(f"{work.key}: {name}, in a turn"):
                calls, seconds = turn(run)
            if not calls:
                del running[name]
                continue
            spent[name] += seconds
            times[name].append(1e3 * seconds / calls)
            rows[name] |= summary(times[name])
        answer.write()


def turn(run: Callable[[], Any]) -> tuple[int, float]:
    """How many calls, and the seconds that they took."""
    begin, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - begin < TURN:
        run()
        calls += 1
    return calls, time.perf_counter() - begin


def line(row: dict[str, Any]) -> str:
    """Of the table."""
    ms = {n: r["median"] for n, r in row["contestants"].items() if "median" in r}
    if "fastmaml" not in ms:
        return f"{row['workload']}: fastmaml did not run"
    own = ms["fastmaml"]
    parts = [f"{row['workload']}: {own:.2f} ms"]
    if LOOP in ms:
        parts.append(f"loop {ms[LOOP] / own:.1f}x")
    parts += [f"{n} {ms[n] / own:.1f}x" for n in RIVALS if n in ms]
    if "fastmaml, first order" in ms:
        parts.append(f"second over first order {own / ms['fastmaml, first order']:.2f}")
    return ", ".join(parts)
