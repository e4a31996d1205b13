"""Tables of meta-steps beside their peers, from results of `meta_step.py`."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.cells import table

Result = dict[str, Any]
LEFT_OUT = {"skipped": "it was not asked for"}
HEADLINE = ("hand-written loop", "learn2learn", "torch.func vmap", "JAX jit of vmap", "fastmaml")
"""The contestants of the README, all of second order."""


def times(found: Result) -> str:
    """Milliseconds, then first calls and memory, and a note."""
    return "\n\n".join(parts_of(found))


def speed(found: Result) -> str:
    """Milliseconds alone."""
    first, _, note = parts_of(found)
    return f"{first}\n\n{note}"


def headline(found: Result) -> str:
    """Milliseconds of a few, for the README."""
    works = found["workloads"]
    rows = [
        [name, *(speed_of(work["rows"], name) for work in works)]
        for name in HEADLINE
        if any("skipped" not in work["rows"].get(name, LEFT_OUT) for work in works)
    ]
    shorts = [work["workload"]["short"] for work in works]
    about = f"{found['device']}, threads: {found['threads']}, torch {found['torch']}."
    return f"{table(['median ms (times as fast as the loop)', *shorts], rows)}\n\n{about}"


def slow(found: Result) -> str:
    """What is compiled for a minute or more, beside what is not, in a run of its own."""
    return f"What takes minutes to begin, in a run of its own:\n\n{times(found)}"


def parts_of(found: Result) -> list[str]:
    """Two tables, a row a contestant, and a note."""
    works = found["workloads"]
    shorts = [work["workload"]["short"] for work in works]
    names = dict.fromkeys(n for work in works for n in work["rows"])
    ran = [n for n in names if any("skipped" not in w["rows"].get(n, LEFT_OUT) for w in works)]
    fast = [[n, *(speed_of(work["rows"], n) for work in works)] for n in ran]
    begin = [[n, *(begin_of(work["rows"].get(n, LEFT_OUT)) for work in works)] for n in ran]
    reasons = {n: works[0]["rows"].get(n, LEFT_OUT)["skipped"] for n in names if n not in ran}
    note = (
        f"{found['device']}, threads: {found['threads']}, torch {found['torch']}, up to "
        f"{max(row.get('turns', 0) for w in works for row in w['rows'].values())} rounds. "
        + " ".join(f"*{w['workload']['short']}*: {w['workload']['title']}." for w in works)
        + "".join(f" Left out: {n} ({reason})." for n, reason in reasons.items())
        + "".join(
            f" Not on {work['workload']['short']}: {n} ({work['rows'][n]['skipped']})."
            for n in ran
            for work in works
            if "skipped" in work["rows"].get(n, {})
        )
    )
    return [
        table(["median ms (times as fast as the loop of the same order)", *shorts], fast),
        table(["first call in a fresh process, s; peak memory of a step, MB", *shorts], begin),
        note,
    ]


def speed_of(rows: Result, name: str) -> str:
    row = rows.get(name, LEFT_OUT)
    if "skipped" in row:
        return ""
    loop = rows["hand-written loop" + (", first order" if row["order"] == 1 else "")]
    ms = row["median_ms"]
    times = f" ({loop['median_ms'] / ms:.1f}x)" if "median_ms" in loop else ""
    return milliseconds(ms) + times


def milliseconds(ms: float) -> str:
    return f"{ms:,.{2 if ms < 10 else 1 if ms < 100 else 0}f}"


def begin_of(row: Result) -> str:
    if "skipped" in row:
        return ""
    memory = "" if row["step_mb"] is None else f"; {row['step_mb']:,.0f}"
    seconds = row["first_call_s"]
    return f"{seconds:,.{2 if seconds < 10 else 0}f}{memory}"
