"""What `fastmaml.bench` concludes from its cells: fitted growth, and what fits a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.gradients import Checkpointed, FirstOrder, GradientMethod, Truncated, Unrolled
from fastmaml.measure.bench import Cell, Configuration, Sweep, bytes_of, plots
from fastmaml.measure.bench.cells import quartiles
from fastmaml.measure.bench.fit import Line, line, memory_law
from fastmaml.measure.bench.table import price_table


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
    assert fitted.points == 3
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


def test_no_line_falls_or_begins_below_zero() -> None:
    """Times that fall with the steps are noise; the best level line stands for them."""
    times = [3.0, 2.0, 2.5]
    fitted = line([1, 2, 5], times)
    assert fitted is not None
    assert fitted.slope == 0
    heights = torch.linspace(1, 4, 3001, dtype=torch.float64)
    errors = sum((heights / y - 1).square() for y in times)
    assert isinstance(errors, torch.Tensor)
    assert fitted.start == pytest.approx(float(heights[errors.argmin()]), abs=1e-3)
    assert fitted.residual == pytest.approx(max(abs(fitted.start / y - 1) for y in times))
    steep = line([1, 2, 4], [1.0, 4.0, 9.0])
    assert steep is not None
    assert steep.start == 0
    assert steep.slope > 0


def timed(
    method: GradientMethod, steps: int, tasks: int, *turns: float, rounds: bool = True
) -> Cell:
    return Cell(
        Configuration(method, steps, tasks), turns=turns, in_rounds=rounds, first_call=1.0,
        tasks_at_once=tasks, peak_bytes=100,
    )  # fmt: skip


def test_laws_of_time_are_written() -> None:
    cells = [timed(Unrolled(), k, t, 0.1 * t * (1 + k)) for k in (1, 2, 4) for t in (2, 8)]
    laws = sweep_of(*cells).as_dict()["time_laws"]
    found = {(law["axis"], law["at"]): law for law in laws}
    assert set(found) == {*(("steps", t) for t in (2, 8)), *(("tasks", k) for k in (1, 2, 4))}
    assert found["steps", 8]["slope_s"] == pytest.approx(0.8)
    assert found["tasks", 4]["start_s"] == pytest.approx(0, abs=1e-12)
    assert found["tasks", 4]["slope_s"] == pytest.approx(0.5)
    assert {law["points"] for law in laws if law["axis"] == "steps"} == {3}
    assert all(law["residual"] < 1e-9 for law in laws)
    assert laws[0]["method"] == "Unrolled"


def test_ratios_are_of_turns_of_the_same_round() -> None:
    exact = timed(Unrolled(), 1, 4, 2.0, 6.0, 3.0, 8.0)
    first = timed(FirstOrder(), 1, 4, 1.0, 2.0, 2.0)  # stopped before its fourth turn
    (price,) = sweep_of(exact, first).second_order
    assert price.paired
    assert price.time == quartiles([2.0, 3.0, 1.5])
    assert (price.time.least, price.time.median, price.time.most) == (1.5, 2.0, 3.0)
    text = str(price_table((price,)))
    assert "1.50–3.00" in text
    assert "range: from the least round to the most" in text
    written = price.as_dict()
    assert written["time_ratio_range"] == [1.5, 3.0]
    assert written["time_ratio_paired"] is True


def test_turns_taken_in_a_row_are_not_paired() -> None:
    exact = timed(Unrolled(), 1, 4, 4.0, 5.0, 6.0, rounds=False)
    for rounds in (False, True):  # a sweep may be stopped in its first round
        first = timed(FirstOrder(), 1, 4, 1.0, 2.0, 4.0, rounds=rounds)
        (price,) = sweep_of(exact, first).second_order
        assert not price.paired
        assert price.time is not None
        assert price.time.median == 5 / 2
        assert (price.time.least, price.time.most) == (4 / 4, 6 / 1)
        assert (price.time.low, price.time.high) == (4.5 / 3, 5.5 / 1.5)
        assert "not taken in rounds" in str(price_table((price,)))


def test_what_fits_counts_the_first_call() -> None:
    def recorded(steps: int) -> Cell:
        return replace(cell(Unrolled(), steps, 4, 400 * steps), first_peak_bytes=600 * steps)

    grown = sweep_of(*map(recorded, (2, 4, 6)))
    assert limits(grown, 2400, "steps") == {4: (4, "measured", False)}
    assert limits(grown, 6100, "steps") == {4: (10, "extrapolated", False)}
    assert "the first one too" in str(grown.fits(6000))
    text = str(grown)
    assert "first MB" in text
    laws = {law["of"]: law["per_step"] for law in grown.as_dict()["memory_laws"]}
    assert laws == {
        "later calls": pytest.approx(100),
        "the largest call": pytest.approx(150),
    }


def test_little_growth_is_no_growth_to_be_believed_for_ever() -> None:
    slow = sweep_of(*(cell(Unrolled(), k, 4, 4 * (10**6 + k)) for k in (2, 4, 8)))
    (limit,) = (x for x in slow.fits(4 * 10**9).limits if x.axis == "steps")
    assert (limit.largest, limit.more, limit.basis) == (100_000, True, "extrapolated")
    assert str(limit) == "more than K=100,000 (extrapolated)"
    assert limit.series.method == "Unrolled"
    (limit,) = (x for x in slow.fits(4 * (10**6 + 99_990)).limits if x.axis == "steps")
    assert not limit.more
    assert limit.largest == pytest.approx(99_990, abs=2)


def test_an_error_says_what_it_was_held_against() -> None:
    def against(steps: int, precision: str) -> Cell:
        return replace(cell(Unrolled(), steps, 4, 100), error=0.5, cosine=1.0, exact_in=precision)

    both = str(sweep_of(against(1, "float64"), against(2, "own precision")))
    assert both.count("0.500*") == 1
    assert "(float64; *: in the model's own precision)" in both
    assert "0.500*" not in str(sweep_of(against(1, "own precision")))
    assert "(in the model's own precision)" in str(sweep_of(against(1, "own precision")))


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
    for text in ("", "GB", "8 bananas", "0GB", "1.2.3GB", "1e999"):
        with pytest.raises(ValueError, match="no size"):
            bytes_of(text)
    for number in (0, 1.5, True):
        with pytest.raises(ValueError, match="no size"):
            bytes_of(number)  # type: ignore[arg-type]
    assert sweep_of().fits("8 GB").budget == 8 * 10**9
    assert sweep_of().fits(7).budget == 7


def test_the_legend_says_how_far_a_line_is_off_and_covers_no_point() -> None:
    assert plots._growth(Line(1, 2.5, 0.034, 3), "ms", "step") == "+2.5 ms a step, within 3.4%"
    assert "by two points" in plots._growth(Line(1, 2.5, 0.0, 2), "ms", "step")
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    backend = pytest.importorskip("matplotlib.backends.backend_agg")
    canvas = backend.FigureCanvasAgg(figure)
    axes = figure.subplots()
    cells = [
        timed(method, k, 4, 0.1 * (1 + k) * slower)
        for slower, method in enumerate((Unrolled(), Checkpointed(), FirstOrder(), Truncated(1)), 1)
        for k in (1, 2, 5)
    ]
    plots._panel(axes, cells, plots.STEPS, plots.TIME)
    canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert legend.y1 < axes.get_window_extent().y0


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
