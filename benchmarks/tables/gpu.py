"""The tables of a GPU, from ``gpu.json`` of `gpu.py`."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import LOOP
from benchmarks.tables.cells import table
from benchmarks.tables.times import milliseconds

Result = dict[str, Any]
ABSENT = "No GPU has been measured yet: `make gpu` does it, in at most 8.5 minutes."


def measured(found: Result) -> str:
    """Meta-steps, ops and memory, as far as there are results."""
    parts = found["parts"]
    made = [steps(parts), products(parts), *(line(parts) for line in (update, attention, memory))]
    versions = ", ".join(f"{n} {found[n]}" for n in ("torch", "triton") if found.get(n))
    versions += f", commit {found['commit'][:9]}"
    quick = " A quick run: its figures say little." if found["quick"] else ""
    told = [part for part in made if part]
    return "\n\n".join([*told, f"{found['device']}, {versions}.{quick}{failures(parts)}"])


def rows_of(parts: Result, name: str) -> list[Result]:
    """Of a part that ran."""
    found: list[Result] = parts.get(name, {}).get("rows", [])
    return found


def steps(parts: Result) -> str:
    """A row a contestant, JAX's among them."""
    rows = {row["workload"]: dict(row["contestants"]) for row in rows_of(parts, "steps")}
    for row in rows_of(parts, "jax"):
        rows.setdefault(row["workload"], {}).update(row["contestants"])
    if not rows:
        return ""
    names = dict.fromkeys(name for contestants in rows.values() for name in contestants)
    lines = [[name, *(cell(of, name) for of in rows.values())] for name in names]
    return table(["median ms (times as fast as the loop)", *rows], lines)


def cell(of: Result, name: str) -> str:
    """Milliseconds, and how many times as fast as the loop of second order."""
    ms, loop = (of.get(n, {}).get("median") for n in (name, LOOP))
    if ms is None:
        return "–"
    return milliseconds(ms) + (f" ({loop / ms:.1f}x)" if loop else "")


def products(parts: Result) -> str:
    """A row an op and shape, of those in float32."""
    rows = [r for r in rows_of(parts, "products") if r["mode"] == "float32" and "median_us" in r]
    lines = []
    for row in rows:
        op, _, shapes = row["work"].partition(" ")
        us, share = row["median_us"]["fastmaml"], row["of_the_best_rival"]
        lines.append([f"`{op}` {shapes}", f"{us:,.1f}", f"{share:.2f}", f"{row['tflops']:.1f}"])
    return table(["float32", "us", "of the best rival's time", "TFLOP/s"], lines) if lines else ""


def update(parts: Result) -> str:
    shares = [
        f"{row['of_the_copy']:.0%} ({row['case']}, {row['parameters']} parameters)"
        for row in rows_of(parts, "update")
    ]
    return f"`inner_update` reaches {', '.join(shares)} of a copy's bandwidth." if shares else ""


def attention(parts: Result) -> str:
    lines = []
    for row in rows_of(parts, "attention"):
        if "faster" in row:
            ms = row["microseconds"]["fastmaml"]["median"] / 1e3
            mb = ("–" if x is None else f"{x:,.0f}" for x in row["mb"].values())
            name = f"{row['dtype']}, {row['length']:,} tokens"
            lines.append([name, milliseconds(ms), f"{row['faster']:.1f}x", *mb])
    header = ["attention with both derivatives", "ms", "as fast as math SDPA", "MB", "its MB"]
    return table(header, lines) if lines else ""


def memory(parts: Result) -> str:
    told = [f"`{row['method']}` {row['growth']:.2f}" for row in rows_of(parts, "memory")]
    what = "Copies of the adapted parameters that one more inner step costs: "
    return f"{what}{', '.join(told)}." if told else ""


def failures(parts: Result) -> str:
    """What was wrong in that run, in a sentence."""
    wrong = sum(len(part.get("failures", ())) for part in parts.values())
    return f" {wrong} checks or tests failed in this run: see its JSON." if wrong else ""
