"""`MemoryLaw`: how the peak memory of a meta-step grows with tasks and inner steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction


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
        weighed = [
            [Fraction(1 / size) * column for column in (1, tasks, tasks * steps)]
            for tasks, steps, size in points
        ]
        law = MemoryLaw(*_non_negative(weighed))
        return replace(law, residual=max(abs(law.peak(t, k) / size - 1) for t, k, size in points))


def _largest(room: float, each: float) -> int | None:
    if room < 0:
        return 0
    return None if each == 0 else math.floor(room / each)


def _non_negative(rows: list[list[Fraction]]) -> list[float]:
    """x >= 0 with the least |rows·x - 1|².

    With three columns every choice of those that are not 0 can be tried: the best solution without
    a negative entry is the constrained one. In exact arithmetic: columns that say the same are told
    from those that nearly do, and the law is the same to the last bit in any order of points, which
    LAPACK does not promise even for equal operands at other places in memory.
    """
    columns = range(len(rows[0]))
    gram = [[sum((row[i] * row[j] for row in rows), Fraction()) for j in columns] for i in columns]
    sums = [sum((row[i] for row in rows), Fraction()) for i in columns]
    best, most = [0.0] * len(columns), Fraction()
    for count in range(1, len(columns) + 1):
        # The last columns are preferred where several do as well.
        for chosen in itertools.combinations(reversed(columns), count):
            x = _solve([[*(gram[i][j] for j in chosen), sums[i]] for i in chosen])
            if x is None or min(x) < 0:
                continue
            # |rows·x - 1|² is the number of rows less this, where x is the best of its columns.
            met = sum((sums[i] * value for i, value in zip(chosen, x, strict=True)), Fraction())
            if met > most:
                values = dict(zip(chosen, map(float, x), strict=True))
                best, most = [values.get(i, 0.0) for i in columns], met
    return best


def _solve(system: list[list[Fraction]]) -> list[Fraction] | None:
    """The solution of a positive semi-definite system; None where it has several.

    Args:
        system: rows of [matrix | right-hand side].
    """
    for i, row in enumerate(system):
        if row[i] == 0:  # of such a matrix: what is left of this row and column is 0 as well
            return None
        row[:] = [value / row[i] for value in row]
        for other in system:
            if other is not row:
                factor = other[i]
                other[:] = [a - factor * b for a, b in zip(other, row, strict=True)]
    return [row[-1] for row in system]
