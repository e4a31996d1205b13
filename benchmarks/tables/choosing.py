"""The tables of docs/concepts/choosing.md: what each gradient method costs and brings, as measured.

Each function takes a result as its script wrote it.
"""

from __future__ import annotations

from typing import Any

from benchmarks.tables.cells import note, table

Result = dict[str, Any]
FIRST = "FirstOrder"


def headline(found: Result, learning: Result | None) -> str:
    """A row a method, its price beside first order's and what it brought."""
    names = dict.fromkeys(n for one in found["workloads"] for n in one["methods"])
    header, columns = ["", *(one["workload"]["short"] for one in found["workloads"])], []
    for one in found["workloads"]:
        columns.append({n: price_of(one, n) for n in names})
    if learning is not None:
        for one in learning["settings"]:
            iterations = one["setting"]["iterations"]
            header.append(f"accuracy, {title(one['setting'])}, {iterations} iterations")
            columns.append({n: accuracy_of(m) for n, m in one["methods"].items()})
    rows = [[f"`{n}`", *(column.get(n, "") for column in columns)] for n in names]
    titles = " ".join(f"*{w['short']}*: {w['title']}." for w in works(found))
    return (
        f"{table(header, rows)}\n\nTime and peak memory of a meta-step over first order's; the "
        f"cosine with the exact meta-gradient. {titles} {note(found)}"
    )


def works(found: Result) -> list[Result]:
    return [one["workload"] for one in found["workloads"]]


def price_of(one: Result, name: str) -> str:
    """Times, memory and cosine of a method."""
    method = one["methods"].get(name)
    points = [m and middle_of(m, one["workload"]) for m in (method, one["methods"].get(FIRST))]
    if method is None or not all(points):
        return ""
    time, memory = (points[0][key] / points[1][key] for key in ("median_ms", "peak_bytes"))
    return f"{time:.1f}x time, {memory:.1f}x memory, cosine {method['cosine']:.2f}"


def accuracy_of(method: Result) -> str:
    half = method["interval_95"]
    return f"{100 * method['accuracy']:.1f}" + (f" ± {100 * half:.1f}%" if half else "%")


def price(found: Result) -> str:
    """Time, memory and direction of every method beside first order, at the middle of each axis."""
    parts = []
    for one in found["workloads"]:
        work, methods = one["workload"], one["methods"]
        middle = {name: middle_of(method, work) for name, method in methods.items()}
        first = middle.get(FIRST)
        rows = [
            [
                f"`{name}`",
                f"{p['median_ms']:.2f} ({p['quartiles_ms'][0]:.2f} to {p['quartiles_ms'][1]:.2f})",
                f"{p['median_ms'] / first['median_ms']:.2f}x" if first else "",
                f"{p['peak_bytes'] / 1e6:.2f}",
                f"{p['peak_bytes'] / first['peak_bytes']:.2f}x" if first else "",
                error_of(methods[name]["from_the_exact"]),
                f"{methods[name]['cosine']:.3f}",
            ]
            for name, p in middle.items()
            if p
        ]
        header = [
            work["title"],
            "ms a meta-step (quartiles)",
            "of first order's",
            "peak MB",
            "of first order's",
            "distance from the exact meta-gradient",
            "cosine with it",
        ]
        parts.append(table(header, rows))
    return "\n\n".join([*parts, note(found)])


def middle_of(method: Result, work: Result) -> Result | None:
    """The point with the workload's own sizes."""
    own = {"steps": work["steps"], "tasks": work["tasks"], "width": work["filters"]}
    points = [p for p in method["points"] if all(p[n] == v for n, v in own.items())]
    return points[0] if points and "error" not in points[0] else None


def error_of(error: float) -> str:
    return "0 (to rounding)" if error < 1e-9 else f"{100 * error:.0f}%"


def laws(found: Result) -> str:
    """What one more inner step, task or width costs, by the fitted laws."""
    parts = []
    for one in found["workloads"]:
        work = one["workload"]
        rows = [
            [f"`{name}`", *law_cells(method, work)]
            for name, method in one["methods"].items()
            if "fits" in method
        ]
        header = [
            work["title"],
            "one more inner step: ms",
            "MB",
            "copies of what adapts",
            "one more task: ms",
            "MB",
            "width w: time as",
            "memory as",
            "largest residual of time; memory",
        ]
        parts.append(table(header, rows))
    return "\n\n".join([*parts, note(found)])


def law_cells(method: Result, work: Result) -> list[str]:
    fits = method["fits"]
    steps, tasks, width = fits["steps"], fits["tasks"], fits["width"]
    middle = middle_of(method, work)
    per_step = steps["memory_bytes"] and steps["memory_bytes"]["rate"]
    worst = [
        max((fits[axis][m]["residual"] for axis in fits if fits[axis][m]), default=None)
        for m in ("time_ms", "memory_bytes")
    ]
    return [
        number(steps["time_ms"], "rate", 1.0, 3),
        number(steps["memory_bytes"], "rate", 1e6, 3),
        "" if per_step is None or middle is None else f"{per_step / middle['copy_bytes']:.2f}",
        number(tasks["time_ms"], "rate", 1.0, 3),
        number(tasks["memory_bytes"], "rate", 1e6, 3),
        exponent(width["time_ms"]),
        exponent(width["memory_bytes"]),
        "; ".join("" if w is None else f"{100 * w:.0f}%" for w in worst),
    ]


def number(fit: Result | None, key: str, unit: float, digits: int) -> str:
    return "" if fit is None else f"{fit[key] / unit:.{digits}g}"


def exponent(fit: Result | None) -> str:
    return "" if fit is None else f"w^{fit['rate']:.2f}"


def convergence(found: Result) -> str:
    """Accuracy at the end, and iterations and seconds until targets were reached."""
    if "absent" in found:
        return f"Not measured here: {found['absent']}."
    tables = [learned(one) for one in found["settings"]]
    s = found["settings"][0]["setting"]
    seeds = max(len(m["curves"]) for m in found["settings"][0]["methods"].values())
    text = (
        f"conv4-{s['filters']}, {s['tasks']} tasks a meta-batch, {s['test_tasks']} test tasks; "
        f"seeds: {seeds}, of which the tables have the mean and its 95% interval, the plot the "
        f"mean, the least and the most. {note(found)}"
    )
    return "\n\n".join([*tables, text])


def learned(one: Result) -> str:
    """Of one setting."""
    methods, s = one["methods"], one["setting"]
    shown = targets(methods)[-3:]
    rows = [
        [
            f"`{name}`",
            accuracy_of(m),
            "" if m["ms_an_iteration"] is None else f"{m['ms_an_iteration']:.0f}",
            *(reached(m["reached"].get(t)) for t in shown),
            " to ".join(f"{sum(c) / len(c):.2f}" for c in zip(*m["cosines"], strict=True)),
        ]
        for name, m in methods.items()
    ]
    header = [
        f"{title(s)}, {s['iterations']} iterations",
        "accuracy on unseen classes",
        "ms an iteration",
        *(f"{float(t):.0%} after" for t in shown),
        "cosine with the meta-gradient, before to after training",
    ]
    return table(header, rows)


def title(setting: Result) -> str:
    return (
        f"{setting['data']} {setting['ways']}-way {setting['shots']}-shot, inner steps: "
        f"{setting['steps']}, inner rate {setting['lr']}"
    )


def targets(methods: Result) -> list[str]:
    return sorted({t for m in methods.values() for t in m["reached"]}, key=float)


def reached(one: Result | None) -> str:
    return "not reached" if one is None else f"{one['iterations']} it., {one['seconds']:.0f} s"


def cold_start(found: Result) -> str:
    """First call, later calls, and when the loop is overtaken."""
    works = found["workloads"]
    names = dict.fromkeys(n for w in works for n in w["rows"])
    ran = [n for n in names if any("skipped" not in w["rows"][n] for w in works)]
    rows = [[n, *(begins(w["rows"][n]) for w in works)] for n in ran]
    heads = [w["workload"]["short"] for w in works]
    known = [r for w in works for r in w["rows"].values() if "skipped" not in r]
    imports = [sorted(r[f"import_{m}_s"] for r in known) for m in ("torch", "fastmaml")]
    middle = [values[len(values) // 2] for values in imports]
    reasons = {n: works[0]["rows"][n]["skipped"] for n in names if n not in ran}
    text = (
        f"`import torch` takes {middle[0]:.2f} s, `import fastmaml` {middle[1]:.2f} s more. "
        f"{note(found)}" + "".join(f" Left out: {n} ({reason})." for n, reason in reasons.items())
    )
    header = ["first call, s; later, ms; ahead of the loop from meta-step", *heads]
    return f"{table(header, rows)}\n\n{text}"


def begins(row: Result) -> str:
    if "skipped" in row:
        return ""
    times = f"{row['first_call_s']:.2f}; {1e3 * row['later_call_s']:.2f}"
    if "ahead_after" not in row:
        return times
    return f"{times}; {'never' if row['ahead_after'] is None else row['ahead_after']}"


def suites(found: Result) -> str:
    """Milliseconds of a meta-step by method, executor and backend."""
    rows = [row for row in found["rows"] if row["suite"] == "meta_step"]
    columns = list(dict.fromkeys((r["workload"], r["steps"]) for r in rows))
    kinds = dict.fromkeys((r["method"], r["executor"], r["backend"]) for r in rows)
    cells = {
        (r["method"], r["executor"], r["backend"], r["workload"], r["steps"]): r["median_us"]
        for r in rows
    }
    body = [
        [f"`{kind[0]}`", f"{kind[1]}, {kind[2]}", *(ms(cells.get((*kind, *c))) for c in columns)]
        for kind in kinds
    ]
    header = ["ms a meta-step", "executor, backend", *(f"{w}, K={k}" for w, k in columns)]
    titles = dict.fromkeys(f"*{r['workload']}*: {r['title']}." for r in rows)
    absent = dict.fromkeys(found["absent"].values())
    left_out = f" Left out: {'; '.join(absent)}." if absent else ""
    return f"{table(header, body)}\n\n{' '.join(titles)} {note(found)}{left_out}"


def ms(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{microseconds / 1e3:.3g}"
