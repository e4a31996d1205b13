"""Tables of how fast episodes are drawn and ops run."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.cells import note, table

Result = dict[str, Any]
PLAIN, BATCHED = "plain torch", "reference"


def sampling(found: Result) -> str:
    """Episodes a second, a row a shape."""
    rows = [
        [
            f"{row['ways']}-way {row['shots']}-shot",
            str(row["queries"]),
            str(row["tasks"]),
            f"{row['median']:,} ({row['least']:,} to {row['most']:,})",
        ]
        for row in found["results"]
    ]
    header = ["task", "queries a class", "tasks a meta-batch", "episodes a second (range)"]
    data = found["data"]
    text = (
        f"From {data['classes']:,} classes of {data['examples']} images of "
        f"{'x'.join(map(str, data['image']))}, {found['rounds']} rounds. {note(found)}"
    )
    return f"{table(header, rows)}\n\n{text}"


def ops(found: Result) -> str:
    """Each native backend beside what PyTorch can do, a row an op and shape."""
    passes = list(dict.fromkeys(row["pass"] for row in found["rows"]))
    cases: dict[tuple[str, str, str], dict[str, str]] = {}
    slower = total = 0
    for row in found["rows"]:
        times = {n: one["median_us"] for n, one in row["contestants"].items()}
        for name, us in times.items():
            if name in (PLAIN, BATCHED):
                continue
            plain, batched = times[PLAIN] / us, times[BATCHED] / us
            total, slower = total + 1, slower + (min(plain, batched) < 1)
            case = cases.setdefault((row["op"], row["shapes"], name), {})
            case[row["pass"]] = f"{us:,.0f} ({plain:.1f}x, {batched:.1f}x)"
    rows = [
        [f"`{op}`", shapes, name, *(times.get(kind, "") for kind in passes)]
        for (op, shapes, name), times in cases.items()
    ]
    header = ["op", "tasks x shapes", "backend", *(f"{kind}, us" for kind in passes)]
    text = (
        "In parentheses: times as fast as a loop over the tasks in plain PyTorch, and as the "
        f"`reference` backend. In {slower} of {total} it is slower than one of the two. "
        f"{note(found)}"
    )
    return f"{table(header, rows)}\n\n{text}"
