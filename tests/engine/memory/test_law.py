"""`MemoryLaw` as arithmetic, and its fit to points."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastmaml.engine.memory.law import MemoryLaw

LAW = MemoryLaw(shared=1e6, fixed=2e5, per_step=3e4)
POINTS = [(t, k, LAW.peak(t, k)) for t in (1, 2, 4) for k in (1, 3, 10)]


def test_peak() -> None:
    assert LAW.peak(4, 10) == 1_000_000 + 4 * (200_000 + 10 * 30_000)


def test_fit_finds_the_law() -> None:
    found = MemoryLaw.fit(POINTS)
    assert (found.shared, found.fixed, found.per_step) == pytest.approx((1e6, 2e5, 3e4), rel=1e-6)
    assert found.residual < 1e-6
    assert LAW.residual == 0


def test_fit_says_how_far_off_it_is() -> None:
    """One point half as large again: the least of squares cannot meet it."""
    points = [*POINTS[:-1], (4, 10, POINTS[-1][2] * 3 // 2)]
    found = MemoryLaw.fit(points)
    assert found.residual == max(abs(found.peak(t, k) / size - 1) for t, k, size in points) > 0.1


def test_the_law_is_the_same_to_the_last_bit_in_any_order() -> None:
    """As two reports of one sweep must be."""
    points = [(1, 1, 15_208), (1, 2, 17_544), (1, 5, 21_003), (3, 1, 44_120), (3, 5, 66_661)]
    laws = {MemoryLaw.fit(order) for order in itertools.permutations(points)}
    assert len(laws) == 1


def test_the_least_squares_are_the_least() -> None:
    """Where no coefficient is held at 0: no step from them in any direction does better."""
    points = [(t, k, LAW.peak(t, k) + 50_000 * ((t + k) % 3)) for t, k, _ in POINTS]
    found = MemoryLaw.fit(points)
    rows = torch.tensor([[1 / n, t / n, t * k / n] for t, k, n in points], dtype=torch.float64)
    x = torch.tensor([found.shared, found.fixed, found.per_step], dtype=torch.float64)
    assert bool((x > 0).all())
    slope = rows.T @ (rows @ x - 1) * x  # against relative changes of each
    assert float(slope.abs().max()) < 1e-12


def test_no_coefficient_is_negative() -> None:
    """Points that fall with the steps are met best by a law that does not grow with them."""
    found = MemoryLaw.fit([(1, k, 1000 - 10 * k) for k in range(1, 9)])
    assert (found.shared, found.per_step) == (0, 0)
    sizes = torch.tensor([1000.0 - 10 * k for k in range(1, 9)], dtype=torch.float64)
    # The constant c that minimises Σ (c / size - 1)².
    best = float(sizes.reciprocal().sum() / sizes.square().reciprocal().sum())
    assert found.fixed == pytest.approx(best, rel=1e-9)


def test_what_points_cannot_tell_apart_counts_as_growing() -> None:
    found = MemoryLaw.fit([(4, 2, 800)])
    assert (found.shared, found.fixed, found.per_step) == pytest.approx((0, 0, 100))
    found = MemoryLaw.fit([(4, 1, 500), (4, 2, 600)])
    assert (found.shared, found.fixed, found.per_step) == pytest.approx((0, 100, 25))


def test_largest() -> None:
    assert LAW.peak(4, LAW.largest_steps(2_500_000, 4) or 0) <= 2_500_000
    assert LAW.largest_steps(2_500_000, 4) == 5
    assert LAW.largest_tasks(2_500_000, 10) == 3
    assert LAW.largest_steps(10, 4) == LAW.largest_tasks(10, 1) == 0
    assert MemoryLaw(1, 1, 0).largest_steps(10, 4) is None
    assert MemoryLaw(1, 0, 0).largest_tasks(10, 4) is None


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"MemoryLaw\(fixed=-1\)"):
        MemoryLaw(0, -1, 0)
    for points in ([], [(1, 1, 0)]):
        with pytest.raises(ValueError, match=r"fit\(points=.*at least one point"):
            MemoryLaw.fit(points)
