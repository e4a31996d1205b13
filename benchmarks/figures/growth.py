"""The picture of `growth.py`: time and memory against steps, tasks and width."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from benchmarks.support.growth_fits import Fit

COLOURS = {
    "Unrolled": "#c44e52",
    "Checkpointed": "#4c72b0",
    "MixedMode": "#dd8452",
    "Truncated(last=1)": "#8172b3",
    "FirstOrder": "#55a868",
    "Reptile": "#937860",
}
MEASURES = (
    ("time_ms", "median_ms", 1.0, "ms a meta-step"),
    ("memory_bytes", "peak_bytes", 1e6, "peak MB"),
)
NAMES = {"steps": "inner steps", "tasks": "tasks", "width": "width"}


def points_along(axis: str, points: list[Any], work: Mapping[str, Any]) -> list[Any]:
    """Those that ran and where this size alone differs from the workload's, in its order."""
    middle = {"steps": work["steps"], "tasks": work["tasks"], "width": work["filters"]}
    others = {n: v for n, v in middle.items() if n != axis}
    found = [p for p in points if "error" not in p and all(p[n] == v for n, v in others.items())]
    return sorted(found, key=lambda p: p[axis])


def draw(result: dict[str, Any], figure: Any) -> None:
    """Two rows a workload, a column a size; dots are measured, lines the fitted law."""
    works = result["workloads"]
    figure.set_size_inches(11, 5.6 * len(works))
    grid = figure.subplots(2 * len(works), 3, squeeze=False)
    for number, found in enumerate(works):
        for row, (law, key, unit, label) in enumerate(MEASURES):
            for axes, axis in zip(grid[2 * number + row], NAMES, strict=True):
                for method, one in found["methods"].items():
                    _curve(axes, one, axis, found["workload"], law, key, unit, COLOURS[method])
                axes.set(xscale="log", yscale="log", xlabel=NAMES[axis])
                axes.set_xticks(found["axes"][axis], [str(x) for x in found["axes"][axis]])
                axes.minorticks_off()
                axes.spines[["top", "right"]].set_visible(False)
            grid[2 * number + row][0].set_ylabel(f"{found['workload']['short']}: {label}")
    names = works[0]["methods"]
    handles = [grid[0][0].plot([], [], "o-", ms=3, color=COLOURS[n])[0] for n in names]
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)


def _curve(
    axes: Any, one: Any, axis: str, work: Any, law: str, key: str, unit: float, colour: str
) -> None:
    """One method along one axis."""
    along = points_along(axis, one["points"], work)
    x = [p[axis] for p in along]
    axes.plot(x, [p[key] / unit for p in along], "o", ms=3, color=colour)
    fit = one.get("fits", {}).get(axis, {}).get(law)
    if fit:
        between = [a + (b - a) * i / 8 for a, b in itertools.pairwise(x) for i in range(9)]
        axes.plot(between, [Fit(**fit).at(v) / unit for v in between], lw=1, color=colour)
