"""The price of second order: every exact method beside first order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastmaml.gradients import FirstOrder
from fastmaml.measure.bench.accuracy import Learned
from fastmaml.measure.bench.cells import Cell, Configuration, Quartiles, finite, quartiles
from fastmaml.training.evaluation import Evaluation


@dataclass(frozen=True)
class Price:
    """An exact method beside `FirstOrder`, with all else the same.

    Attributes:
        exact: the configuration of the exact method.
        time: seconds of the exact method over those of first order; see `ratios`.
        paired: whether they are of turns of the same rounds.
        memory: the same of peak bytes.
        error, cosine: of first order's meta-gradient, as in `Cell`.
        accuracy: after meta-training with the exact meta-gradient, at these inner steps.
        first_order_accuracy: the same with first order, from the same start on the same episodes.
        missing: why there is no time, where there is none.
    """

    exact: Configuration
    time: Quartiles | None
    memory: float | None
    error: float | None
    cosine: float | None
    paired: bool = True
    accuracy: Evaluation | None = None
    first_order_accuracy: Evaluation | None = None
    missing: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The ratios as a plain dict, for JSON."""
        c = self.exact
        return {
            **c.series._asdict(),
            "steps": c.steps,
            "tasks": c.tasks,
            "time_ratio": self.time and self.time.median,
            "time_ratio_quartiles": self.time and [self.time.low, self.time.high],
            "time_ratio_range": self.time and [self.time.least, self.time.most],
            "time_ratio_paired": self.paired,
            "memory_ratio": self.memory,
            "first_order_error": finite(self.error),
            "first_order_cosine": finite(self.cosine),
            "accuracy": self.accuracy and self.accuracy.as_dict(),
            "first_order_accuracy": (
                self.first_order_accuracy and self.first_order_accuracy.as_dict()
            ),
            **({"missing": self.missing} if self.missing else {}),
        }


def prices(cells: Sequence[Cell], learned: Iterable[Learned]) -> tuple[Price, ...]:
    """One for each cell of an exact method that has a cell of `FirstOrder` beside it."""
    beside = {
        _but_method(cell): cell
        for cell in cells
        if isinstance(cell.configuration.gradient, FirstOrder)
    }
    by_steps = {(x.steps, x.exact): x.evaluation for x in learned}
    return tuple(
        _price(cell, beside[_but_method(cell)], by_steps)
        for cell in cells
        if cell.configuration.gradient.exact and _but_method(cell) in beside
    )


def ratios(exact: Cell, first: Cell) -> Quartiles | None:
    """The times of one over those of the other; None where one has none.

    Turns of the same round met the same moment of the machine, and are divided by each other. Turns
    that were taken in a row, each configuration at its own time, are not: then the least of one
    stands over the most of the other, and so on, which is as far as the ratio may be off.
    """
    if exact.in_rounds and first.in_rounds:
        return quartiles([a / b for a, b in zip(exact.turns, first.turns, strict=False)])
    a, b = exact.seconds, first.seconds
    if a is None or b is None:
        return None
    return Quartiles(
        low=a.low / b.high,
        median=a.median / b.median,
        high=a.high / b.low,
        least=a.least / b.most,
        most=a.most / b.least,
    )


def _but_method(cell: Cell) -> tuple[Any, ...]:
    c = cell.configuration
    return c.steps, c.tasks, c.backend, c.executor


def _price(exact: Cell, first: Cell, learned: dict[tuple[int, bool], Evaluation | None]) -> Price:
    steps = exact.configuration.steps
    missing = exact.refusal or (first.refusal and f"first order: {first.refusal}")
    sizes = exact.peak_bytes, first.peak_bytes
    return Price(
        exact.configuration,
        time=None if missing else ratios(exact, first),
        paired=exact.in_rounds and first.in_rounds,
        memory=sizes[0] / sizes[1] if sizes[0] and sizes[1] else None,
        error=first.error,
        cosine=first.cosine,
        accuracy=learned.get((steps, True)),
        first_order_accuracy=learned.get((steps, False)),
        missing=missing,
    )
