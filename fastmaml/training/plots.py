"""The picture of a run: its learning curve, and what each adaptation step brings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmaml._files import write_whole
from fastmaml.training.summary import Evaluation, quantity

TRAINING, UNSEEN, CHANCE = "#9aa5b1", "#0b62a4", "#b03a2e"


def plot_run(path: Path, lines: Sequence[dict[str, Any]], test: Evaluation, title: str) -> None:
    """Write a PNG with two panels: the metric over iterations, and over adaptation steps.

    Args:
        path: of the PNG.
        lines: of ``metrics.jsonl``.
        test: the final test.
        title: of the figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2)
    _learning_curve(left, lines, test)
    _per_step(right, test)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_whole(path, content.getvalue())


def _learning_curve(axes: Any, lines: Sequence[dict[str, Any]], test: Evaluation) -> None:
    """Training meta-batches, smoothed, and the evaluations on unseen tasks with their bands."""
    train = [(x["iteration"], x[test.metric]) for x in lines if x.get(test.metric) is not None]
    if train:
        iterations, values = zip(*train, strict=True)
        axes.plot(iterations, values, color=TRAINING, lw=0.6, alpha=0.35)
        axes.plot(iterations, smoothed(values), color=TRAINING, lw=1.6, label="training tasks")
    points = [(x["iteration"], x["validation"]) for x in lines if x.get("validation")]
    if points:
        at = [i for i, _ in points]
        means = [v[test.metric] for _, v in points]
        _band(axes, at, means, [v["interval_95"] for _, v in points], "unseen tasks (95% interval)")
    axes.set_title("learning curve")
    axes.set_xlabel("iteration of the outer loop")
    _finish(axes, test)


def _per_step(axes: Any, test: Evaluation) -> None:
    label = f"{test.episodes} unseen test tasks (95% interval)"
    steps = list(range(test.steps + 1))
    _band(axes, steps, test.means, test.intervals, label)
    axes.set_title("adaptation to a new task")
    axes.set_xlabel("inner steps (0: no adaptation)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(axes, test)


def _band(
    axes: Any, x: Sequence[float], means: Sequence[float], half: Sequence[float | None], label: str
) -> None:
    """Where an episode is the only one, there is no interval."""
    low = [m - (h or 0.0) for m, h in zip(means, half, strict=True)]
    high = [m + (h or 0.0) for m, h in zip(means, half, strict=True)]
    axes.fill_between(x, low, high, color=UNSEEN, alpha=0.2, lw=0)
    axes.plot(x, means, color=UNSEEN, lw=1.8, marker="o", ms=4, label=label)


def _finish(axes: Any, test: Evaluation) -> None:
    """What both panels share: the scale of the metric, chance, grid and legend."""
    axes.set_ylabel(quantity(test.metric))
    if test.metric == "accuracy":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    elif test.metric == "loss":
        axes.set_ylim(bottom=0)
    if test.chance is not None:
        shown = f"{test.chance:.0%}" if test.metric == "accuracy" else f"{test.chance:.3g}"
        label = f"{test.chance_name} ({shown})"
        axes.axhline(test.chance, color=CHANCE, ls="--", lw=1.2, label=label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean over the last twentieth of the run, at least over 5 values."""
    width = max(len(values) // 20, 5)
    result, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        result.append(total / min(i + 1, width))
    return result
