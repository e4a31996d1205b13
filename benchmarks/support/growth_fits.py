"""How a measured figure grows: a line or a power, and how far the points are from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Fit(NamedTuple):
    """``start + rate * x`` for a line, ``start * x ** rate`` for a power.

    Attributes:
        law: "line" or "power".
        start, rate: its two numbers.
        residual: the largest |law - point| / point.
    """

    law: str
    start: float
    rate: float
    residual: float

    def at(self, x: float) -> float:
        """The law's value."""
        if self.law == "power":
            return float(self.start * x**self.rate)
        return self.start + self.rate * x


def line(x: Sequence[float], y: Sequence[float]) -> Fit | None:
    """The line with the least relative errors; None of fewer than three points.

    Neither number is negative: at no size does a step take less than nothing.
    """
    if len(x) < 3:
        return None
    start, rate = _weighted(x, y, [1 / b**2 for b in y])
    if start < 0:
        start, rate = 0.0, _through(x, y)
    if rate < 0:
        start, rate = len(y) / sum(1 / b for b in y), 0.0
    return _with_residual(Fit("line", start, rate, 0.0), x, y)


def power(x: Sequence[float], y: Sequence[float]) -> Fit | None:
    """The power of `x`, by a line through the logarithms; None of fewer than three points."""
    if len(x) < 3:
        return None
    logs = [[math.log(v) for v in values] for values in (x, y)]
    start, rate = _weighted(logs[0], logs[1], [1.0] * len(x))
    return _with_residual(Fit("power", math.exp(start), rate, 0.0), x, y)


def _weighted(x: Sequence[float], y: Sequence[float], w: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the line with the least weighted squares."""
    whole = sum(w)
    mean_x, mean_y = (sum(a * b for a, b in zip(w, v, strict=True)) / whole for v in (x, y))
    over = sum(a * (b - mean_x) * (c - mean_y) for a, b, c in zip(w, x, y, strict=True))
    under = sum(a * (b - mean_x) ** 2 for a, b in zip(w, x, strict=True))
    slope = over / under
    return mean_y - slope * mean_x, slope


def _through(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope through zero with the least relative errors."""
    ratios = [a / b for a, b in zip(x, y, strict=True)]
    return sum(ratios) / sum(r * r for r in ratios)


def _with_residual(fit: Fit, x: Sequence[float], y: Sequence[float]) -> Fit:
    return fit._replace(residual=max(abs(fit.at(a) - b) / b for a, b in zip(x, y, strict=True)))
