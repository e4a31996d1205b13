"""Tables of what was measured with pretrained language models."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.cells import table


def memory(found: dict[str, Any]) -> str:
    """Memory and time of a pretrained BERT against the inner steps."""
    rows = [
        [
            name,
            copies_a_step(row),
            *(point(row["points"].get(str(k), {})) for k in found["steps"]),
        ]
        for name, row in found["contestants"].items()
    ]
    header = ["GiB at the peak; seconds", "copies a step", *(f"K={k}" for k in found["steps"])]
    note = (
        f"{found['parameters'] / 1e6:.1f} M parameters, {found['texts']} texts of "
        f"{found['length']} tokens as support and as query, one task; {found['device']}, threads: "
        f"{found['threads']}, torch {found['torch']}. A copy is all that adapts. Peaks are of "
        "resident memory, and so are copies a step unless they say live: then they count bytes of "
        "live tensors, as a few adapters vanish in what the allocator rounds up."
    )
    return f"{table(header, rows)}\n\n{note}"


def copies_a_step(row: dict[str, Any]) -> str:
    live, resident = row.get("live_growth_copies_per_step"), row["growth_copies_per_step"]
    if live is not None:
        return f"{live:.2f} live ({resident:.1f})"
    return "" if resident is None else f"{resident:.2f}"


def point(point: dict[str, Any]) -> str:
    if "peak_bytes" not in point:
        return "does not fit" if "left out" in str(point.get("error", "")) else ""
    return f"{point['peak_bytes'] / 2**30:.2f}; {point['seconds']:.1f}"


def intents(found: dict[str, Any]) -> str:
    """Few-shot intents, a row a method."""
    s = found["setting"]
    note = (
        "Accuracy in per cent, with 95% intervals over so many episodes of five classes, the first "
        f"of which are the same for all ({found['model']}). Meta-training: "
        f"{found['data']}, 100 intents, 5-way 1-shot, {s['iterations']} iterations of {s['tasks']} "
        f"tasks, {s['inner_steps']} inner steps at {s['inner_lr']}; {how_classified(s)}; "
        f"outer rate {s['meta_lr']:g}{learned(found)}. Held out: its other "
        f"{s['test_classes']} intents. Other data: {found['test_data']}."
    )
    return f"{accuracies(found)}\n\n{note}"


def how_classified(s: dict[str, Any]) -> str:
    pooled = "the mean over the tokens" if s["pooling"] == "mean" else "the model's own pooler"
    last = "from zero" if s["head"] == "zero" else "the model's own, meta-learned"
    return f"features: {pooled}; last layer: {last}"


def learned(found: dict[str, Any]) -> str:
    """The outer rates of those methods that have some of their own."""
    return "".join(
        f"; {name}: {row['meta_lr']:g}, of the inner rates {row['rates_lr']:g}"
        for name, row in found["methods"].items()
        if row.get("rates_lr") is not None
    )


def accuracies(found: dict[str, Any]) -> str:
    methods = found["methods"]
    columns = list(next(iter(methods.values()))["accuracy"])
    rows = [
        [
            name,
            *(f"{row['accuracy'][c][0]:.1f} ± {row['accuracy'][c][1]:.1f}" for c in columns),
            f"{row['steps']} at {row['lr']}" if row["steps"] else "none",
            str(row["test_episodes"]),
        ]
        for name, row in methods.items()
    ]
    header = ["method", *columns, "inner steps of the test", "episodes"]
    return table(header, rows)
