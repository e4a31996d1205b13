"""Pictures of trajectories in the plane, before and after adaptation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmaml._files import write_whole
from fastmaml.rl.trajectories import Trajectories

COLORS = "#9aa5b1", "#7fb2d9", "#2f7fbf", "#0b4a80"
MOST = 10
"""Trajectories of a task that are drawn."""


def plot_paths(path: Path, found: Sequence[Trajectories], goals: Tensor, title: str) -> None:
    """Write a PNG with a panel for each task: where trajectories went after each inner step.

    Args:
        path: of the PNG.
        found: after 0, 1, ... inner steps; observations are positions.
        goals: ``[tasks, 2]``.
        title: of the figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(goals), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    for task, axes in enumerate(figure.subplots(1, len(goals), squeeze=False)[0]):
        for step, trajectories in enumerate(found):
            _draw(axes, trajectories, task, COLORS[min(step, len(COLORS) - 1)], step)
        axes.plot(*goals[task].tolist(), marker="*", ms=14, color="#b03a2e", ls="", label="goal")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if task == 0:
            axes.legend(frameon=False, fontsize=8, loc="best")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_whole(path, content.getvalue())


def _draw(axes: Any, trajectories: Trajectories, task: int, color: str, step: int) -> None:
    label = "before adaptation" if step == 0 else f"{step} step{'s' * (step > 1)}"
    for i in range(min(trajectories.rewards.shape[2], MOST)):
        length = int(trajectories.lengths[task, i])
        x, y = trajectories.observations[task, :length, i, :2].T.tolist()
        axes.plot(x, y, color=color, lw=0.9, alpha=0.7, label=None if i else label)
