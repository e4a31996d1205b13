"""Are the contestants' meta-gradients those of the hand-written loop?"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import CONTESTANTS, LOOP, LOOP_FIRST
from benchmarks.support.turns import Field, Process, WorkerError
from benchmarks.support.workloads import Workload

EXACT = 1e-9  # relative, over the whole gradient, in float64
# The same in float32. Of tens of millions of ReLUs and maxima in conv4 rounding turns some, and one
# in the last layer moves the gradient by percents. First order is further off, or nothing is timed.
ROUNDED = {
    **dict.fromkeys(("mlp", "policy", "transformer"), 1e-3),
    **dict.fromkeys(("conv4", "conv4-inplace", "resnet12"), 0.1),
}
TF32 = 0.1
CHECKED_TASKS = 2
LONGER = 4
Arrays = dict[str, Any]


def loop_of(name: str) -> str:
    """The hand-written loop of the same order."""
    return LOOP if CONTESTANTS[name].order == 2 else LOOP_FIRST


def read(path: Path) -> Arrays:
    with np.load(path) as found:
        return {n: found[n] for n in found.files}


def difference(a: Arrays, b: Arrays) -> float:
    """Of the whole gradients, relative: a bias before BatchNorm has one of zero up to rounding."""
    if a.keys() != b.keys():
        raise SystemExit(f"not the same parameters: {sorted(a.keys() ^ b.keys())}")
    flat = [np.concatenate([g[n].ravel().astype(np.float64) for n in b]) for g in (a, b)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def allowed(work: Workload, tf32: bool) -> float:
    return max(ROUNDED[work.network], TF32 if tf32 else 0.0)


def require(name: str, work: Workload, error: float, most: float, dtype: str) -> None:
    if not error <= most:
        raise SystemExit(
            f"{work.title}: the meta-gradient of {name} in {dtype} is {error:.1e} off that of the "
            f"hand-written loop in float64 (allowed: {most:.0e}). Nothing is timed."
        )


class Check:
    """The hand-written loop's gradients in float64, and how far the others' are from them.

    Attributes:
        whole: the loop's gradient by its name and the workload's key; `some`, of the first tasks.
        differences, refused: of the others on the first tasks, or why there is none.
        gflop: of the exact loop's matrix products in a whole meta-step.
        first_order: how far the first-order loop is from the exact one.
    """

    def __init__(self, field: Field, works: list[Workload], place: Path) -> None:
        self.field, self.works, self.place = field, works, place
        self.whole: dict[tuple[str, str], Arrays] = {}
        self.some: dict[tuple[str, str], Arrays] = {}
        self.differences: dict[tuple[str, str], float] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self.gflop: dict[str, float] = {}
        self.first_order: dict[str, float] = {}

    def run(self) -> None:
        for name in (LOOP, LOOP_FIRST):
            with contextlib.closing(self.field.process(name, "float64")) as process:
                for work in self.works:
                    self.whole[name, work.key] = self._gradient(process, work, None)
                    self.some[name, work.key] = self._gradient(process, work, CHECKED_TASKS)
                    limit = LONGER * self.field.options.patience
                    flop = process.ask("flop", limit)["flop"]
                    if name == LOOP:
                        self.gflop[work.key] = round(flop * work.tasks / CHECKED_TASKS / 1e9, 3)
        for work in self.works:
            self._tells_second_order(work)
        for name in self.field.names:
            # What is slow to begin would begin once more for float64.
            if name not in (LOOP, LOOP_FIRST) and not CONTESTANTS[name].slow:
                self._compare(name)

    def _tells_second_order(self, work: Workload) -> None:
        key, most = work.key, allowed(work, self.field.options.tf32)
        self.first_order[key] = difference(self.whole[LOOP_FIRST, key], self.whole[LOOP, key])
        if not self.first_order[key] > most:
            raise SystemExit(
                f"{work.title}: first order is {self.first_order[key]:.1e} off second order, less "
                f"than the {most:.0e} that rounding is allowed: comparing them would show nothing."
            )

    def _compare(self, name: str) -> None:
        left = list(self.works)
        while left:
            with contextlib.closing(self.field.process(name, "float64")) as process:
                while left and process.alive():
                    self._compare_one(name, left.pop(0), process)

    def _compare_one(self, name: str, work: Workload, process: Process) -> None:
        key = name, work.key
        try:
            found = self._gradient(process, work, CHECKED_TASKS)
        except WorkerError as refusal:
            self.refused[key] = f"in float64: {refusal}"
            print(f"{work.key}: {name} is left out: {self.refused[key]}", flush=True)
            return
        self.differences[key] = difference(found, self.some[loop_of(name), work.key])
        print(f"{work.key}: {name} off by {self.differences[key]:.0e} in float64", flush=True)
        require(name, work, self.differences[key], EXACT, "float64")

    def _gradient(self, process: Process, work: Workload, tasks: int | None) -> Arrays:
        # The loops, which all else waits for, may take their time.
        limit = self.field.options.patience * (LONGER if process.name in (LOOP, LOOP_FIRST) else 1)
        path = self.place / "gradient.npz"
        data = str(self.place / f"{work.key}.npz")
        process.ask("load", limit, workload=work.key, data=data, tasks=tasks)
        process.ask("first", limit, gradient=str(path))
        return read(path)
