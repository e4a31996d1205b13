"""How sure a mean is: 95% confidence intervals by Student's t, which few draws need."""

from __future__ import annotations

import functools
import math
from typing import TypeVar

from torch import Tensor

__all__ = ["half_width", "student_95"]

Spread = TypeVar("Spread", float, Tensor)

_PARTS = 200
"""Of Simpson's rule."""
_MOST = 13.0
"""More than the result ever is."""
_MANY = 10**7
"""Degrees of freedom: with more it is the same, and the gamma function's logarithm inexact."""


def half_width(spread: Spread, count: int) -> Spread:
    """Half the width of the 95% confidence interval of a mean.

    Args:
        spread: the standard deviation of what the mean is of (with ``count - 1`` below the sum of
            squares, as PyTorch and `statistics.stdev` have it), a number or a tensor of them.
        count: how many values the mean is of.

    Returns:
        `student_95` standard errors, of the kind of `spread`; nan where `count` is 1.

    Raises:
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count={count}: give how many values the mean is of, at least 1.")
    if count == 1:
        return spread * math.nan
    return spread * (student_95(count - 1) / math.sqrt(count))


@functools.cache
def student_95(degrees: int) -> float:
    """Half the width of the central 95% of Student's t distribution, to six digits.

    12.706 for 1 degree of freedom, 2.262 for 9, and 1.960, the normal distribution's, for many.

    Args:
        degrees: of freedom: one fewer than the values that a mean is of.

    Raises:
        ValueError: `degrees` is not positive.
    """
    if degrees < 1:
        raise ValueError(f"degrees={degrees}: give a positive number of degrees of freedom.")
    degrees = min(degrees, _MANY)
    # With t = sqrt(degrees) tan(a), the share inside is this scale times the integral of
    # cos(x)^(degrees - 1) from 0 to a, which is smooth whatever the number of degrees.
    scale = 2 / math.sqrt(math.pi)
    scale *= math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    low, high = 0.0, math.atan(_MOST / math.sqrt(degrees))
    for _ in range(52):  # halvings, to the last digit
        middle = (low + high) / 2
        if scale * _integral(degrees - 1, middle) < 0.95:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _integral(power: int, end: float) -> float:
    """Of cos(x)^power from 0 to `end`, by Simpson's rule."""
    width = end / _PARTS
    weights = (4 if i % 2 else 2 for i in range(1, _PARTS))
    inner = sum(w * math.cos(i * width) ** power for i, w in enumerate(weights, 1))
    return (1 + inner + math.cos(end) ** power) * width / 3
