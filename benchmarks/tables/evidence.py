"""Tables of what `fm.profile` and `fm.bench` say about themselves: sums, memory, second runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.tables.cells import note, table

Result = dict[str, Any]
EXAMPLES = {"profiles": "omniglot", "vs_first_order": "conv4"}
"""Whose report is shown whole."""
MIB = 2**20


def profiles(found: Result) -> str:
    """Phases beside the plain step, live tensors beside resident memory."""
    rows = [
        [one["title"], *step_cells(one["times"]), *memory_cells(one["memory"])]
        for one in present(found)
    ]
    header = [
        "median (least to most)",
        "the plain step, ms",
        "sum of the phases, off it by",
        "rest",
        "profiling on costs",
        "live tensors, MiB",
        "resident growth, MiB",
        "live over resident",
    ]
    text = (
        f"{found['rounds']} fresh processes for the times, with {found['repeats']} steps of either "
        f"kind each, and as many for the memory. {note(found)}{left_out(found)}"
    )
    return f"{table(header, rows)}\n\n{text}"


def present(found: Result) -> list[Result]:
    return [one for one in found["subjects"].values() if "absent" not in one]


def left_out(found: Result) -> str:
    absent = {k: one["absent"] for k, one in found["subjects"].items() if "absent" in one}
    return "".join(f" Left out: {key} ({reason})." for key, reason in absent.items())


def step_cells(times: list[Result]) -> list[str]:
    return [
        spread([1e3 * one["plain_step_s"] for one in times], "{:.3g}".format),
        spread([100 * one["sum_off"] for one in times], "{:+.1f}%".format),
        spread([100 * one["unmarked"] for one in times], "{:.1f}%".format),
        spread([100 * one["overhead"] for one in times], "{:+.1f}%".format),
    ]


def memory_cells(peaks: list[Result]) -> list[str]:
    """A peak that could not be measured is the reason."""
    cells = []
    for key in ("peak", "resident"):
        values = [one[key] for one in peaks]
        reason = next((v for v in values if isinstance(v, str)), None)
        cells.append(reason or spread([v / MIB for v in values], "{:.3g}".format))
    if any(isinstance(one[key], str) for one in peaks for key in ("peak", "resident")):
        return [*cells, ""]
    return [*cells, spread([one["peak"] / one["resident"] for one in peaks], "{:.2f}".format)]


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """The median, and in between what all were where they differ."""
    low, middle, high = (show(f(values)) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def vs_first_order(found: Result) -> str:
    """Each model's price of second order, and whether a second run falls where the first says."""
    parts, subjects = [], [one for one in found["subjects"].values() if len(one["runs"]) == 2]
    for one in subjects:
        first, second = (run["prices"] for run in one["runs"])
        header = [
            one["title"],
            "K",
            "time, of first order's (least to most of the turns)",
            "in a second run",
            "within",
            "peak memory, of first order's",
            "first order's distance from the exact meta-gradient",
            "cosine with it",
        ]
        pairs = zip(first, second, strict=True)
        parts.append(table(header, [price_row(a, b) for a, b in pairs]))
    ratios, times = hits(subjects, "prices"), hits(subjects, "cells")
    parts.append(
        f"Of the second run's ratios {ratios} lie within what the first run stated, "
        f"of its times themselves {times}. {note(found)}"
    )
    return "\n\n".join(parts)


def price_row(first: Result, second: Result) -> list[str]:
    head = [f"`{first['method']}`", str(first["steps"])]
    if missing := first.get("missing") or second.get("missing"):
        return [*head, missing, "", "", "", "", ""]
    low, high = first["interval"]
    return [
        *head,
        f"{first['median']:.2f}x ({low:.2f} to {high:.2f})",
        f"{second['median']:.2f}x",
        "yes" if within(first, second) else "**no**",
        "" if first["memory"] is None else f"{first['memory']:.2f}x",
        "" if first["error"] is None else f"{100 * first['error']:.0f}%",
        "" if first["cosine"] is None else f"{first['cosine']:.3f}",
    ]


def within(first: Result, second: Result) -> bool:
    """Whether the second run's median is in the first one's interval."""
    low, high = first["interval"]
    found: bool = low <= second["median"] <= high
    return found


def hits(subjects: list[Result], rows: str) -> str:
    """How many are within, of how many."""
    found = [
        within(a, b)
        for one in subjects
        for a, b in zip(*(run[rows] for run in one["runs"]), strict=True)
        if "missing" not in a and "missing" not in b
    ]
    return f"{sum(found)} of {len(found)}"


def partial_scopes(found: Result) -> str:
    """What an inner step costs where a part adapts, beside loops by hand."""
    names = list(dict.fromkeys(n for row in found["rows"] for n in row["contestants"]))
    header = ["model", "adapts", "K", *(f"{name}, ms" for name in names)]
    header += [f"{name}, MiB" for name in names]
    rows = []
    for row in found["rows"]:
        cells = [row["contestants"].get(name) for name in names]
        times = ["" if c is None else digits(1e3 * c["median_s"]) for c in cells]
        sizes = ["" if c is None else digits(c["peak_bytes"] / MIB) for c in cells]
        rows.append([row["title"], row["adapts"], str(row["steps"]), *times, *sizes])
    worst = max(error for row in found["rows"] for error in row["errors"].values())
    text = (
        f"Second order; medians of {found['rounds']} turns, and the peak of live tensors in a "
        f"meta-step. Meta-gradients in float64 were at most {worst:.0e} apart. {note(found)}"
    )
    return f"{table(header, rows)}\n\n{text}"


def varying(found: Result) -> str:
    """What it costs that something is another at every call."""
    names = list(dict.fromkeys(n for row in found["rows"] for n in row["contestants"]))
    loop = names[0]
    rows = []
    for row in found["rows"]:
        times = {n: c["median_s"] for n, c in row["contestants"].items()}
        cells = [
            f"{digits(1e3 * times[n])}" + f" ({times[loop] / times[n]:.1f}x)" * (n != loop)
            for n in names
        ]
        rows.append([row["title"], row["varies"], *cells])
    worst = max(row["error"] for row in found["rows"])
    text = (
        f"Second order; median ms of the second half of {found['calls']} calls (times as fast as "
        f"the loop). Meta-gradients in float64 were at most {worst:.0e} apart. {note(found)}"
    )
    return f"{table(['model', 'varies', *names], rows)}\n\n{text}"


def unequal(found: Result) -> str:
    """What it costs that tasks have different numbers of rows."""
    names = list(found["rows"][0]["contestants"])
    rows = []
    for row in found["rows"]:
        of = row["contestants"]
        base = of[names[0]]["median_s"]
        times = [
            f"{digits(1e3 * of[n]['median_s'])} ({of[n]['median_s'] / base:.2f}x)" for n in names
        ]
        rows.append([row["title"], *times, ", ".join(f"{of[n]['rows']:.0f}" for n in names[:3])])
    worst = max(row["error"] for row in found["rows"])
    text = (
        "A meta-step of 16 tasks of 5 to 60 rows, half of them support, and 5 inner steps; median "
        f"ms of the process in the second half of {found['calls']} calls (times as long as of "
        "tasks of equal size with as many rows in all). Filled up, meta-gradients were at most "
        f"{worst:.0e} from the loop's, in float64. {note(found)}"
    )
    header = ["model", *names, f"rows that count: {', '.join(names[:3])}"]
    return f"{table(header, rows)}\n\n{text}"


def decoders(found: Result) -> str:
    """Small decoders of transformers beside a loop by hand."""
    names = list(found["rows"][0]["contestants"])
    rows = []
    for row in found["rows"]:
        each = [row["contestants"][name] for name in names]
        times = [c["median_s"] for c in each]
        shown = [digits(1e3 * t) for t in times]
        shown[-1] += f" ({times[0] / times[-1]:.1f}x)"
        sizes = [digits(c["peak_bytes"] / MIB) for c in each]
        rows.append([row["subject"], *shown, *sizes, *(f"{c['first_s']:.1f}" for c in each)])
    columns = ("ms", "MiB", "first call, s")
    header = ["decoder", *(f"{name}, {unit}" for unit in columns for name in names)]
    worst = max(row["error"] for row in found["rows"])
    text = (
        f"{found['title']}; second order; medians of the second half of {found['calls']} calls "
        f"(times as fast as the loop), and the peak of live tensors in a meta-step. The models "
        f"normalise in float32; meta-gradients in float64 were at most {worst:.0e} apart. "
        f"{note(found)}"
    )
    return f"{table(header, rows)}\n\n{text}"


def digits(x: float) -> str:
    """Three of them, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def example(name: str) -> Callable[[Result], str]:
    """The whole report of one subject, as it was printed."""

    def shown(found: Result) -> str:
        one = found["subjects"].get(EXAMPLES[name], {})
        text = (one["runs"][0] if "runs" in one else one).get("text", "Not measured here.")
        return "\n".join(["```text", *(line.rstrip() for line in text.splitlines()), "```"])

    return shown
