"""The price of second order: every exact method beside first order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastmaml.evaluation import Evaluation
from fastmaml.gradients import FirstOrder
from fastmaml.sweeps.accuracy import Learned
from fastmaml.sweeps.cells import Cell, Configuration, Quartiles, finite, quartiles


@dataclass(frozen=True)
class Price:
    """An exact method beside `FirstOrder`, with all else the same.

    Attributes:
        exact: the configuration of the exact method.
        time: seconds of the exact method over those of first order, turn by turn.
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
    accuracy: Evaluation | None = None
    first_order_accuracy: Evaluation | None = None
    missing: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        c = self.exact
        return {
            **c.series._asdict(),
            "steps": c.steps,
            "tasks": c.tasks,
            "time_ratio": self.time and self.time.median,
            "time_ratio_quartiles": self.time and [self.time.low, self.time.high],
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


def _but_method(cell: Cell) -> tuple[Any, ...]:
    c = cell.configuration
    return c.steps, c.tasks, c.backend, c.executor


def _price(exact: Cell, first: Cell, learned: dict[tuple[int, bool], Evaluation | None]) -> Price:
    steps = exact.configuration.steps
    # Turns of the same round met the same moment of the machine.
    ratios = [a / b for a, b in zip(exact.turns, first.turns, strict=False)]
    missing = exact.refusal or (first.refusal and f"first order: {first.refusal}")
    sizes = exact.peak_bytes, first.peak_bytes
    return Price(
        exact.configuration,
        time=quartiles(ratios) if ratios and not missing else None,
        memory=sizes[0] / sizes[1] if sizes[0] and sizes[1] else None,
        error=first.error,
        cosine=first.cosine,
        accuracy=learned.get((steps, True)),
        first_order_accuracy=learned.get((steps, False)),
        missing=missing,
    )
