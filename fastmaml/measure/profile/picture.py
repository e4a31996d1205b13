"""The picture of a `Report`: memory over the step, and time by phase."""

from __future__ import annotations

import io
from itertools import groupby
from typing import Any

from fastmaml.measure.profile.phases import (
    INNER,
    META,
    OPTIMIZER,
    QUERY,
    RECOMPUTED,
    REST,
    SAMPLING,
    SUPPORT,
    UPDATE,
    WHOLE,
)
from fastmaml.measure.profile.report import Report, Timeline

COLOURS = {
    SAMPLING: "#8c8c8c",
    SUPPORT: "#4c72b0",
    INNER: "#55a3c7",
    UPDATE: "#64b5a0",
    QUERY: "#e0a030",
    RECOMPUTED: "#9a6fb0",
    META: "#c44e52",
    WHOLE: "#7a5c3e",
    OPTIMIZER: "#5f9e4a",
    REST: "#c8ccd0",
}


def draw(report: Report) -> bytes:
    """A PNG with two panels.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'profile.png needs matplotlib, which is not installed: pip install "fastmaml[plot]".'
        ) from error
    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(report.title, fontsize=12)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _memory(left, report)
    _times(right, report)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _memory(axes: Any, report: Report) -> None:
    """Live bytes stacked by the phase that made them, above a band of the phase it is in."""
    axes.set_title("live memory, by the phase that made it")
    line = report.timeline
    if line is None:
        axes.text(0.5, 0.5, str(report.peak_bytes), ha="center", va="center", wrap=True)
        axes.set_axis_off()
        return
    times = [1e3 * s for s in line.seconds]
    stacks = [[b / 2**20 for b in of] for of in line.bytes.values()]
    colours = [COLOURS[name] for name in line.bytes]
    axes.stackplot(times, *stacks, colors=colours, labels=list(line.bytes), step="post", lw=0)
    top = max(map(sum, zip(*stacks, strict=True)))
    _bands(axes, line, times, top)
    axes.set(
        xlabel="ms of a step that is followed operator by operator",
        ylabel="MiB beyond what was there before",
        xlim=(times[0], times[-1]),
        ylim=(-0.08 * top, 1.05 * top),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.36), ncols=4)


def _bands(axes: Any, line: Timeline, times: list[float], top: float) -> None:
    place = 0
    for phase, group in groupby(line.phases):
        count = len(list(group))
        end = min(place + count, len(times) - 1)
        axes.fill_between(times[place : end + 1], -0.06 * top, -0.015 * top, color=COLOURS[phase])
        if place:
            axes.axvline(times[place], color="#00000018", lw=0.5)
        place += count


def _times(axes: Any, report: Report) -> None:
    timed = [p for p in report.phases if not isinstance(p.seconds, str)]
    names = [p.name for p in timed]
    ms = [1e3 * float(p.seconds) for p in timed]
    bars = axes.barh(names, ms, color=[COLOURS[name] for name in names])
    axes.bar_label(bars, [f"{float(p.share):.0%}" for p in timed], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(f"time by phase, of a step of {1e3 * report.step_seconds.median:.3g} ms")
    axes.set_xlabel("ms")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
