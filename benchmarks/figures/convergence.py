"""The picture of `convergence.py`: accuracy on unseen classes against iterations and seconds."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.figures.growth import COLOURS


def draw(result: dict[str, Any], figure: Any) -> None:
    """A row a setting; lines are means over the seeds, bands the least and the most of them."""
    settings = result["settings"]
    figure.set_size_inches(10, 3.6 * len(settings))
    grid = figure.subplots(len(settings), 2, sharey="row", squeeze=False)
    for (left, right), found in zip(grid, settings, strict=True):
        for name, method in found["methods"].items():
            _curve((left, right), method["curves"], name)
        s, seeds = found["setting"], max(len(m["curves"]) for m in found["methods"].values())
        left.set(xlabel="iterations of the outer loop", ylabel="accuracy on unseen classes")
        right.set(xlabel="seconds of meta-training")
        left.set_title(
            f"{s['data']}, {s['ways']}-way {s['shots']}-shot, inner steps: {s['steps']}, "
            f"inner rate {s['lr']}, seeds: {seeds}",
            loc="left",
            fontsize=10,
        )
        for axes in (left, right):
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        left.legend(frameon=False)


def _curve(panels: Any, curves: list[Any], name: str) -> None:
    """One method, in both panels, as far as all seeds went."""
    points = [list(zip(*at, strict=True)) for at in zip(*curves, strict=False)]
    iterations, seconds = ([statistics.mean(p[i]) for p in points] for i in (0, 1))
    accuracy = [statistics.mean(p[2]) for p in points]
    low, high = [min(p[2]) for p in points], [max(p[2]) for p in points]
    style = "--" if name == "MixedMode" else "-"  # exact as Unrolled: the same curve
    for axes, x in zip(panels, (iterations, seconds), strict=True):
        axes.plot(x, accuracy, style, color=COLOURS[name], label=name)
        axes.fill_between(x, low, high, color=COLOURS[name], alpha=0.15, lw=0)
