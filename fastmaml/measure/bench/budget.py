"""What fits in a number of bytes, from what was measured and the law fitted to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.measure.bench.cells import Cell, Series
from fastmaml.measure.bench.fit import by_series, law_points, memory_law, needed
from fastmaml.measure.bench.sizes import size_text

MAX_SIZE = 100_000
"""A law of some growth, however little, is not believed beyond this."""

Basis = Literal["measured", "interpolated", "extrapolated"]


@dataclass(frozen=True)
class Limit:
    """The most inner steps, or tasks at once, of one series within the budget.

    Attributes:
        series: method, backend and executor.
        axis: what is counted.
        at: the meta-batch's tasks where steps are counted, inner steps where tasks are.
        largest: the answer; 0 where not even one fits, None where any number does, as the law has
            no growth.
        more: whether more than `largest` fit by a law that is not believed beyond that.
        basis: "measured": so many were measured to fit; "interpolated": the law says so between
            one that was measured to fit and one that was not; "extrapolated": the law alone.
        at_least: only one number was measured, and all of its bytes were taken to grow in
            proportion: more may fit.
        residual: the largest relative error of the law at what was measured.
        points: how many measurements the law was fitted to.
    """

    series: Series
    axis: Literal["steps", "tasks"]
    at: int
    largest: int | None
    basis: Basis
    at_least: bool
    residual: float
    points: int
    more: bool = False

    def __str__(self) -> str:
        return f"{self._amount()} ({self.basis})"

    def _amount(self) -> str:
        unit = "inner step" if self.axis == "steps" else "task"
        if self.largest is None:
            return f"any number of {unit}s"
        if self.largest == 0:
            return f"not even one {unit}"
        bound = "at least" if self.at_least and self.basis != "measured" else "up to"
        bound = "more than" if self.more else bound
        if self.axis == "steps":
            return f"{bound} K={self.largest:,}"
        return f"{bound} {self.largest:,} {unit}s at once"


@dataclass(frozen=True)
class Fits:
    """What fits in `budget` bytes, besides the model, the data and the optimizer's state.

    The first meta-step is to fit too, which plans and records.

    Attributes:
        budget: bytes.
        limits: one for each series of configurations, by inner steps and by tasks.
    """

    budget: int
    limits: tuple[Limit, ...]

    def __str__(self) -> str:
        lines = [
            f"with {size_text(self.budget)} for a meta-step, the first one too (model, data, "
            "optimizer on top):"
        ]
        groups: dict[str, list[str]] = {}
        several = len({limit.series[1:] for limit in self.limits}) > 1
        for limit in self.limits:
            where = f"{limit.at} tasks" if limit.axis == "steps" else f"K={limit.at}"
            name = limit.series.method
            if several:
                name += f" [{limit.series.backend}, {limit.series.executor}]"
            groups.setdefault(where, []).append(f"{name} {limit}")
        lines += [f"  {where}: {', '.join(said)}" for where, said in groups.items()]
        return "\n".join([*lines, *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        if not self.limits:
            yield "  no memory was measured"
        by_law = [limit for limit in self.limits if limit.basis != "measured"]
        laws = {limit.series.method: limit for limit in by_law}
        said = (f"{n} {100 * x.residual:.2g}% ({x.points} points)" for n, x in laws.items())
        if laws:
            yield f"  the laws miss what they were fitted to by at most: {', '.join(said)}"
        if any(limit.at_least for limit in by_law):
            yield "  at least: where one number was measured, all of its bytes count as growing"

    def as_dict(self) -> dict[str, Any]:
        """The limits as plain dicts and lists, for JSON."""
        limits = [
            {
                **limit.series._asdict(),
                "axis": limit.axis,
                "at": limit.at,
                "largest": limit.largest,
                "basis": limit.basis,
                "at_least": limit.at_least,
                "residual": limit.residual,
                "points": limit.points,
                "more": limit.more,
            }
            for limit in self.limits
        ]
        return {"budget": self.budget, "limits": limits}


def fits(cells: Iterable[Cell], budget: int) -> Fits:
    """The limits of every series: steps at each number of tasks, tasks at each number of steps."""
    limits: list[Limit] = []
    for series, own in by_series(cells).items():
        known = [cell for cell in own if needed(cell) and cell.tasks_at_once]
        law = memory_law(known, needed)
        if law is not None:
            limits += _of_steps(series, known, law, budget)
            limits += _of_tasks(series, known, law, budget)
    order = sorted(limits, key=lambda limit: (limit.axis, limit.at))
    return Fits(budget, tuple(order))


def _of_steps(series: Series, cells: list[Cell], law: MemoryLaw, budget: int) -> Iterable[Limit]:
    few = len({cell.configuration.steps for cell in cells}) == 1
    for tasks in sorted({cell.configuration.tasks for cell in cells}):
        own = [cell for cell in cells if cell.configuration.tasks == tasks]
        peaks = {cell.configuration.steps: needed(cell) or 0 for cell in own}
        at_once = max(cell.tasks_at_once or 0 for cell in own)
        answer = _largest(peaks, law.largest_steps(budget, at_once), budget)
        yield _limit(series, "steps", tasks, answer, few, law, cells)


def _of_tasks(series: Series, cells: list[Cell], law: MemoryLaw, budget: int) -> Iterable[Limit]:
    few = len({cell.tasks_at_once for cell in cells}) == 1
    for steps in sorted({cell.configuration.steps for cell in cells}):
        own = [cell for cell in cells if cell.configuration.steps == steps]
        peaks = {cell.tasks_at_once or 0: needed(cell) or 0 for cell in own}
        answer = _largest(peaks, law.largest_tasks(budget, steps), budget)
        yield _limit(series, "tasks", steps, answer, few, law, cells)


class _Answer(NamedTuple):
    largest: int | None
    basis: Basis
    more: bool = False


def _limit(
    series: Series,
    axis: Literal["steps", "tasks"],
    at: int,
    answer: _Answer,
    few: bool,
    law: MemoryLaw,
    cells: list[Cell],
) -> Limit:
    points = len(law_points(cells, needed))
    return Limit(
        series, axis, at, answer.largest, answer.basis, few, law.residual, points, answer.more
    )


def _largest(peaks: Mapping[int, int], predicted: int | None, budget: int) -> _Answer:
    """The law's answer, kept between what was measured to fit and what was measured not to."""
    over = min((x for x, size in peaks.items() if size > budget), default=math.inf)
    fitting = max((x for x, size in peaks.items() if size <= budget and x < over), default=0)
    found = min(max(math.inf if predicted is None else predicted, fitting), over - 1)
    if found == math.inf:
        return _Answer(None, "extrapolated")
    if found == fitting:
        measured = fitting > 0 or over == 1
        return _Answer(int(found), "measured" if measured else "extrapolated")
    if fitting > 0 and over < math.inf:
        return _Answer(int(found), "interpolated")
    return _Answer(int(min(found, max(MAX_SIZE, fitting))), "extrapolated", found > MAX_SIZE)
