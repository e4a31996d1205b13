"""Intervals of means: Student's quantile against tables and scipy, and how often they hold."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from fastmaml.training.intervals import half_width, student_95

PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 9: 2.262, 30: 2.042, 120: 1.980}
"""As tables in books have it (Abramowitz & Stegun 26.10), by degrees of freedom."""


@pytest.mark.parametrize("degrees", PRINTED)
def test_as_printed(degrees: int) -> None:
    assert round(student_95(degrees), 3) == PRINTED[degrees]


def test_closed_forms() -> None:
    """Those of 1, 2 and 4 degrees of freedom, and the normal distribution's."""
    assert student_95(1) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-7)
    assert student_95(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-7)
    angle = math.acos(math.sqrt(1 - 0.95**2)) / 3
    four = 2 * math.sqrt(math.cos(angle) / math.sqrt(1 - 0.95**2) - 1)
    assert student_95(4) == pytest.approx(four, rel=1e-7)
    normal = statistics.NormalDist().inv_cdf(0.975)
    assert student_95(10**9) == student_95(10**7) == pytest.approx(normal, rel=1e-6)


def test_as_scipy_has_it() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 60), 99, 199, 599, 10_000, 123_457, 10**6, 10**7):
        assert student_95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-6)


def test_of_numbers_and_of_tensors() -> None:
    assert half_width(2.0, 10) == pytest.approx(2.262157 * 2 / math.sqrt(10), rel=1e-6)
    found = half_width(torch.tensor([1.0, 2.0], dtype=torch.float64), 10)
    assert found.tolist() == pytest.approx([half_width(1.0, 10), half_width(2.0, 10)])
    assert math.isnan(half_width(1.0, 1))
    assert half_width(torch.ones(2), 1).isnan().all()


@pytest.mark.parametrize("count", [2, 5, 10])
def test_the_mean_is_inside_as_often_as_said(count: int) -> None:
    """95% of 20,000 times; 1.96 standard errors would hold it 70, 88 and 92% of them."""
    drawn = torch.randn(20_000, count, generator=torch.Generator().manual_seed(0))
    inside = drawn.mean(1).abs() <= half_width(drawn.std(1), count)
    assert inside.float().mean().item() == pytest.approx(0.95, abs=0.006)


def test_no_values() -> None:
    with pytest.raises(ValueError, match="count=0: give how many"):
        half_width(1.0, 0)
    with pytest.raises(ValueError, match="degrees=0: give a positive number"):
        student_95(0)
