"""The table of methods by their papers' names."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.cells import note, table


def methods(found: dict[str, Any]) -> str:
    """One row a method: its error on unseen tasks."""
    rows = []
    for name, row in found["methods"].items():
        interval = row["interval_95"]
        error = f"{row['error']:.3f}" + (f" ± {interval:.3f}" if interval is not None else "")
        rows.append([name, error])
    header = [
        f"sinusoid, 10 shots, {found['iterations']:,} iterations of 25 tasks",
        "mean squared error on unseen tasks",
    ]
    text = (
        f"Mean over {found['seeds']} seeds and its 95% interval. The inner rate is 1 for CAVIA, as "
        f"in its paper, and MAML's 0.01 elsewhere; none was tuned. {note(found)}"
    )
    return f"{table(header, rows)}\n\n{text}"
