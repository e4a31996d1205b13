"""What `fastmaml.bench` concludes from its cells: fitted growth, and what fits a budget."""

from __future__ import annotations

import pytest

from fastmaml.engine.memory_law import MemoryLaw
from fastmaml.gradients import Checkpointed, FirstOrder, GradientMethod, Truncated, Unrolled
from fastmaml.sweeps import Cell, Configuration, Sweep, bytes_of, plots
from fastmaml.sweeps.fit import line, memory_law


def cell(method: GradientMethod, steps: int, tasks: int, size: int) -> Cell:
    return Cell(
        Configuration(method, steps, tasks), turns=(0.5, 1.0, 2.0), peak_bytes=size,
        tasks_at_once=tasks, first_call=1.0,
    )  # fmt: skip


def sweep_of(*cells: Cell) -> Sweep:
    return Sweep("a model", "a device", {"torch": "none"}, cells)


def test_lines_and_laws_are_recovered() -> None:
    fitted = line([1, 2, 5], [5.0, 8.0, 17.0])
    assert fitted is not None
    assert (fitted.start, fitted.slope) == (pytest.approx(2), pytest.approx(3))
    assert fitted.residual < 1e-12
    assert line([2, 2], [1.0, 3.0]) is None
    law = MemoryLaw(shared=1000, fixed=300, per_step=70)
    cells = [cell(Unrolled(), k, t, law.peak(t, k)) for k in (1, 2, 5) for t in (2, 8)]
    cells[0] = cell(Unrolled(), 1, 2, 10 * law.peak(2, 1))  # one step is no part of the growth
    found = memory_law(cells)
    assert found is not None
    assert found.shared == pytest.approx(1000)
    assert found.fixed == pytest.approx(300)
    assert found.per_step == pytest.approx(70)
    assert found.residual < 1e-3


def limits(sweep: Sweep, budget: int, axis: str) -> dict[int, tuple[int | None, str, bool]]:
    found = sweep.fits(budget).limits
    return {x.at: (x.largest, x.basis, x.at_least) for x in found if x.axis == axis}


def test_what_fits_is_measured_interpolated_or_extrapolated() -> None:
    # 100 bytes for every task, and 50 a step.
    grown = sweep_of(*(cell(Unrolled(), k, 4, 4 * (100 + 50 * k)) for k in (2, 3, 8)))
    assert limits(grown, 4 * 499, "steps") == {4: (7, "interpolated", False)}
    assert limits(grown, 4 * 250, "steps") == {4: (3, "measured", False)}
    assert limits(grown, 4 * 200, "steps") == {4: (2, "measured", False)}
    assert limits(grown, 4 * 1100, "steps") == {4: (20, "extrapolated", False)}
    assert limits(grown, 4 * 149, "steps") == {4: (0, "extrapolated", False)}
    assert limits(grown, 4 * 500 + 4, "tasks") == {
        2: (10, "extrapolated", True), 3: (8, "extrapolated", True), 8: (4, "measured", True),
    }  # fmt: skip
    text = str(grown.fits(4 * 1100))
    assert "up to K=20 (extrapolated)" in text
    assert "(3 points)" in text


def test_what_does_not_grow_or_is_one_point() -> None:
    flat = sweep_of(*(cell(FirstOrder(), k, 4, 1000) for k in (1, 2, 5)))
    assert limits(flat, 2000, "steps") == {4: (None, "extrapolated", False)}
    assert "any number of inner steps" in str(flat.fits(2000))
    assert limits(flat, 999, "steps") == {4: (0, "measured", False)}
    one = sweep_of(cell(Unrolled(), 2, 4, 1000))
    assert limits(one, 3000, "steps") == {4: (6, "extrapolated", True)}
    assert "at least K=6" in str(one.fits(3000))
    nothing = sweep_of(Cell(Configuration(Unrolled(), 1, 1), refusal="out of memory"))
    assert "no memory was measured" in str(nothing.fits(1000))


def test_sizes_are_read() -> None:
    assert bytes_of("8GB") == 8 * 10**9
    assert bytes_of("1.5 GiB") == 3 * 2**29
    assert bytes_of("500mb") == 500 * 10**6
    assert bytes_of("1e9") == 10**9
    for text in ("", "GB", "8 bananas", "0GB", "1.2.3GB"):
        with pytest.raises(ValueError, match="no size"):
            bytes_of(text)


@pytest.mark.parametrize("method", [Checkpointed(), Checkpointed(3), Truncated(2)])
def test_names_of_methods(method: GradientMethod) -> None:
    names = {"Checkpointed", "Checkpointed(segments=3)", "Truncated(last=2)"}
    assert Configuration(method, 1, 1).method in names


def test_the_plotted_growth_of_memory_is_the_law() -> None:
    law = MemoryLaw(shared=3e6, fixed=2e6, per_step=1e6)
    cells = [cell(Unrolled(), k, t, law.peak(t, k)) for k in (1, 2, 5) for t in (2, 8)]
    of_steps = [c for c in cells if c.configuration.tasks == 8]
    of_tasks = [c for c in cells if c.configuration.steps == 5]
    steps = plots._line_of_law(of_steps, cells, plots.STEPS)
    tasks = plots._line_of_law(of_tasks, cells, plots.AT_ONCE)
    assert steps is not None
    assert tasks is not None
    assert (steps.start, steps.slope) == (pytest.approx(3 + 8 * 2), pytest.approx(8))
    assert (tasks.start, tasks.slope) == (pytest.approx(3), pytest.approx(2 + 5))
