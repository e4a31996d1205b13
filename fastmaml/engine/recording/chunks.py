"""Running the chunks of a meta-step: one after the other, or on all cores."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from fastmaml.engine.recording.as_recorded import AsRecorded
from fastmaml.ops import alone, parallel_region

Chunk = Callable[[int], list[Tensor]]


class Sum:
    """Adds up the chunks' results in their order, whatever the order in which they arrive.

    Args:
        split: the results before this one are joined along the tasks, the others added.
    """

    def __init__(self, split: int) -> None:
        self.split = split
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Tensor]] = {}
        self._next = 0
        self._by_task: list[list[Tensor]] = []
        self._total: list[Tensor] = []

    def add(self, number: int, results: list[Tensor]) -> None:
        """Take the results of one chunk; at most one a thread waits for those before it."""
        with self._lock:
            self._waiting[number] = results
            while self._next in self._waiting:
                results = self._waiting.pop(self._next)
                self._by_task.append(results[: self.split])
                more = results[self.split :]
                if self._total and more:
                    self._total = list(torch._foreach_add(self._total, more))
                elif more:
                    self._total = more
                self._next += 1

    def results(self) -> list[Tensor]:
        """The results of all chunks: by task, then the sums."""
        if len(self._by_task) == 1:
            return self._by_task[0] + self._total
        joined = [torch.cat(xs) for xs in zip(*self._by_task, strict=True)]
        return joined + self._total


def run_chunks(
    chunk: Chunk,
    count: int,
    split: int,
    parallel: bool,
    small: bool = False,
    total: Sum | None = None,
) -> list[Tensor]:
    """The results of all chunks, joined and added up.

    Args:
        chunk: computes the results of one, called with gradients disabled.
        count: how many there are.
        split: see `Sum`.
        parallel: use all of torch's threads, one chunk each, where the native module is built.
        small: a chunk's operations are too small for more than one thread.
        total: adds them up; None for a `Sum` of its own.
    """
    total = total or Sum(split)

    def one(number: int) -> None:
        with AsRecorded():
            total.add(number, chunk(number))

    region = parallel_region() if parallel and count > 1 else None
    single = alone() if small and count == 1 else None
    if region is not None:
        region(one, count)
    elif single is not None:
        single(lambda: one(0))
    else:
        for number in range(count):
            one(number)
    with AsRecorded():
        return total.results()
