"""The picture of `memory_growth.py`: peak memory against the inner steps."""

from __future__ import annotations

from typing import Any


def draw(result: dict[str, Any], figure: Any) -> None:
    """Peak against steps: lines are live tensors, circles resident memory."""
    colours = {"Unrolled": "#c44e52", "Checkpointed": "#4c72b0", "MixedMode": "#dd8452"}
    figure.set_size_inches(6.4, 4)
    axes = figure.subplots()
    for method, found in result["methods"].items():
        label = f"{method}: {found['growth_copies_per_step']:.2f} copies a step"
        axes.plot(result["steps"], found["peak_copies"], color=colours[method], label=label)
        if "resident_peak_copies" in found:
            resident = found["resident_peak_copies"]
            axes.plot(result["steps"], resident, "o", color=colours[method], fillstyle="none", ms=4)
    s = result["setting"]
    axes.set(
        xlabel="inner steps",
        ylabel="peak memory, in copies of the\nadapted parameters",
        title=f"MLP {s['layers']} × {s['width']}, {s['examples']} examples, {s['tasks']} tasks",
        xlim=(0, None),
        ylim=(0, None),
        xticks=range(0, max(result["steps"]) + 1, 1 + max(result["steps"]) // 10),
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
