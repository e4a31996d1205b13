"""The picture of `omniglot.py`: accuracy on validation characters against minutes."""

from __future__ import annotations

from typing import Any

COLOURS = {"MAML": "tab:blue", "MAML++": "tab:orange"}


def draw(result: dict[str, Any], figure: Any) -> None:
    """A panel for each number of ways; a line for each seed."""
    settings = result["settings"]
    figure.set_size_inches(5 * len(settings), 3.6)
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    for axes, (name, methods) in zip(panels, settings.items(), strict=True):
        for method, kept in methods.items():
            for i, run in enumerate(kept["runs"].values()):
                _, seconds, accuracy = zip(*run["validation"], strict=True)
                minutes = [s / 60 for s in seconds]
                label = method if i == 0 else None
                axes.plot(minutes, accuracy, color=COLOURS[method], label=label, lw=1)
        axes.set(xlabel="minutes of meta-training", ylabel="accuracy, unseen characters")
        axes.set_title(f"Omniglot, {name} 1-shot", loc="left", fontsize=10)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
