"""Tables of planned memory, and of plans beside runs."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.cells import table

HEADER = [
    "model",
    "method",
    "tasks at once",
    "layers",
    "weights",
    "steps hold",
    "meta-step",
    "in all",
    "in all, recorded",
]


def plans(found: dict[str, Any]) -> str:
    """A row for each model and gradient method."""
    if "plans" not in found:
        return "Not planned yet: `python -m benchmarks.programs.planned_memory --only table`."
    rows = [row(name, plan, way) for name, plan in found["plans"].items() for way in plan["ways"]]
    s = found["setting"]
    note = (
        f"GiB. {s['tasks']} tasks of {s['support']} + {s['query']} rows of {s['tokens']} tokens, "
        f"K={s['steps']}, LoRA rank {s['lora']} on the query and value projections, weights in "
        "bfloat16, AdamW. In all: with weights, meta-batch, gradients, moments and the allowance "
        "(1 GB and 5% of the meta-step); **bold** where it fits in 80 GiB. Planned with torch "
        f"{found['torch']}, not run."
    )
    return f"{table(HEADER, rows)}\n\n{note}"


def row(name: str, plan: dict[str, Any], way: dict[str, Any]) -> list[str]:
    return [
        name.partition(",")[0],
        f"`{way['method'].partition('(')[0]}`",
        str(way["tasks_at_once"]),
        "checkpointed" if way["layers_checkpointed"] else "kept",
        gib(plan["weights"]),
        gib(way["held"]),
        gib(way["step"]),
        within(way["eager"], way["memory"]),
        within(way["recorded"], way["memory"]),
    ]


def within(size: int, memory: int) -> str:
    return f"**{gib(size)}**" if size <= memory else gib(size)


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}" if size < 2**30 else f"{size / 2**30:.1f}"


def checked(found: dict[str, Any]) -> str:
    """Plans beside runs of the same model."""
    if "checked" not in found:
        return "Not measured yet: `python -m benchmarks.programs.planned_memory --only check`."
    rows = [
        [
            name,
            gib(one["planned_bytes"]),
            gib(one["measured_bytes"]),
            f"{100 * (one['planned_bytes'] / one['measured_bytes'] - 1):+.0f}%",
        ]
        for name, one in found["checked"].items()
    ]
    s = found["checked_setting"]
    header = ["GiB of the first meta-step", "planned", "measured", "planned is off by"]
    note = (
        f"A Llama of {found['checked_parameters'] / 1e6:.0f} M parameters in float32, LoRA rank "
        f"{s['lora']}, {s['tasks']} tasks of {s['support']} + {s['query']} rows of {s['tokens']} "
        f"tokens, one at a time, K={s['steps']}; {found['device']}, torch {found['torch']}. "
        "Measured: resident memory of a fresh process, its peak over what it held before."
    )
    return f"{table(header, rows)}\n\n{note}"
