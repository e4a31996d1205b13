"""`MemoryLaw`: how the peak memory of a meta-step grows with tasks and inner steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class MemoryLaw:
    """peak = shared + tasks_at_once · (fixed + steps · per_step), in bytes.

    The tasks that run at the same time each hold their own parameters, activations and graphs, and
    an inner step adds the same to every one of them: its second-order graph (`Unrolled`), or one
    copy of what adapts (`Checkpointed`, `MixedMode`). What all tasks share, such as the sum of the
    meta-gradient, is there once. The law holds for one model, one kind of episode, one gradient
    method and one executor; the model itself, its ``.grad`` before the step and the data are not
    part of it.

    Attributes:
        shared: bytes however many tasks there are.
        fixed: bytes that a task holds without any inner step: its query pass.
        per_step: bytes that one more inner step adds to a task.
        residual: the largest |law - point| / point of the points that it was fitted to; 0 for a
            law that was not fitted.
    """

    shared: float
    fixed: float
    per_step: float
    residual: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shared", "fixed", "per_step", "residual"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"MemoryLaw({name}={value!r}): give a number of at least 0.")

    def peak(self, tasks_at_once: int, steps: int) -> int:
        """Bytes of a meta-step.

        Args:
            tasks_at_once: how many tasks run at the same time: the size of a chunk, times the
                number of chunks that run on cores of their own.
            steps: inner steps.
        """
        return round(self.shared + tasks_at_once * (self.fixed + steps * self.per_step))

    def largest_steps(self, budget: int, tasks: int) -> int | None:
        """The most inner steps within `budget` bytes with so many tasks at once.

        0 where not even one step fits; None where a step more costs nothing, so that any number
        fits.
        """
        return _largest(budget - self.shared - tasks * self.fixed, tasks * self.per_step)

    def largest_tasks(self, budget: int, steps: int) -> int | None:
        """The most tasks at once within `budget` bytes at so many inner steps.

        0 where not even one fits; None where a task more costs nothing.
        """
        return _largest(budget - self.shared, self.fixed + steps * self.per_step)

    @staticmethod
    def fit(points: Iterable[tuple[int, int, int]]) -> MemoryLaw:
        """The law with the least sum of squared relative errors, no coefficient below 0.

        Relative, because points may be orders of magnitude apart and each is to be met within some
        percent. Where the points cannot tell coefficients apart (all at one number of tasks, or of
        steps), bytes count as `per_step` rather than `fixed`, and as `fixed` rather than `shared`,
        so that the law does not promise too much for larger meta-steps.

        Args:
            points: (tasks_at_once, steps, bytes) of measured peaks.

        Raises:
            ValueError: there are no points, or a point of 0 bytes or less.
        """
        points = list(points)
        if not points or any(size <= 0 for _, _, size in points):
            raise ValueError(
                f"MemoryLaw.fit(points={points}): give at least one point "
                "(tasks_at_once, steps, bytes), each with more than 0 bytes."
            )
        rows = [[1.0, tasks, tasks * steps] for tasks, steps, _ in points]
        sizes = torch.tensor([float(size) for _, _, size in points], dtype=torch.float64)
        found = _non_negative(torch.tensor(rows, dtype=torch.float64) / sizes.unsqueeze(1))
        law = MemoryLaw(*found)
        return replace(law, residual=max(abs(law.peak(t, k) / size - 1) for t, k, size in points))


def _largest(room: float, each: float) -> int | None:
    if room < 0:
        return 0
    return None if each == 0 else math.floor(room / each)


def _non_negative(matrix: torch.Tensor) -> tuple[float, float, float]:
    """x >= 0 with the least |matrix·x - 1|².

    With three columns every choice of those that are not 0 can be tried: the best solution without
    a negative entry is the constrained one.
    """
    ones = torch.ones(len(matrix), dtype=matrix.dtype)
    best, least = [0.0] * matrix.shape[1], math.inf
    columns = range(matrix.shape[1])[::-1]  # the last are preferred where several do as well
    scale = matrix.norm(dim=0)
    for count in range(1, len(columns) + 1):
        for chosen in map(list, itertools.combinations(columns, count)):
            part = matrix[:, chosen] / scale[chosen]
            if not bool((scale[chosen] > 0).all()) or torch.linalg.matrix_rank(part) < count:
                continue
            x = torch.linalg.lstsq(part, ones).solution / scale[chosen]
            error = float((matrix[:, chosen] @ x - ones).square().sum())
            if bool((x >= 0).all()) and error < least - 1e-18 * len(matrix):
                best, least = [0.0] * len(best), error
                for column, value in zip(chosen, x.tolist(), strict=True):
                    best[column] = value
    return best[0], best[1], best[2]
