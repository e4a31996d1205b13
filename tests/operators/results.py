"""What a sweep found: classes, figures, and the page of the documentation."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

from tests.support.places import ROOT

RESULTS = Path(__file__).parent / "results.json"
DOCS = ROOT / "docs" / "operators.md"

CLASSES = {
    "right": "right by every method and executor",
    "mixed mode": "right by all but `MixedMode`, which refuses by name",
    "second order": "no second derivative: exact methods refuse by name, `FirstOrder` is right",
    "refused": "refused otherwise",
    "not compared": "nothing to compare with",
    "wrong": "wrong",
    "error": "an error that does not say what to do",
    "crash": "a crash of the interpreter",
}

EXACT = {"Unrolled", "Checkpointed", "MixedMode"}

Results = dict[str, Any]


def merged(path: Path, rows: list[dict[str, Any]], samples: int, keep: bool) -> Results:
    """The rows' summaries; with `keep`, beside those of other operators that `path` has."""
    old = json.loads(path.read_text())["operators"] if keep and path.exists() else {}
    found = {row["name"]: summary(row) for row in rows}
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "samples": samples,
        "operators": dict(sorted({**old, **found}.items())),
    }


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """An operator's class, how many ways were compared, and what was not right."""
    findings = row["findings"]
    tried = [f for f in findings if "method" in f or f["outcome"] == "crash"]
    rest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for f in tried or findings:
        if f["outcome"] != "right":
            kept = {"outcome": f["outcome"], "variant": f.get("variant"), "why": _reason(f)}
            found = rest.setdefault(tuple(kept.values()), {**kept, "methods": []})
            if f.get("method") not in (None, *found["methods"]):
                found["methods"].append(f["method"])
    about: dict[str, Any] = {"class": _class(tried), "ways": len(tried)}
    if any(f.get("random") for f in tried):
        about["random"] = True
    looped = {f["why"] for f in tried if f["outcome"] == "right" and "captured" in f.get("why", "")}
    if looped:
        about["eager"] = sorted(looped)[0]
    if any(f.get("why", "").startswith("plain: ") for f in tried):
        about["differences"] = True
    if rest:
        about["not right"] = list(rest.values())
    return about


def _class(tried: list[dict[str, Any]]) -> str:
    outcomes = {f["outcome"] for f in tried}
    for worst in ("crash", "wrong", "error"):
        if worst in outcomes:
            return worst
    if not tried:
        return "not compared"
    refusing = {f["method"] for f in tried if f["outcome"] == "refused"}
    if not refusing:
        return "right"
    if refusing == {"MixedMode"}:
        return "mixed mode"
    return "second order" if refusing == EXACT else "refused"


def figures(found: Results) -> dict[str, int]:
    """How many operators there are of each class."""
    classes = [row["class"] for row in found["operators"].values()]
    return {name: classes.count(name) for name in CLASSES}


def page(found: Results) -> str:
    """docs/operators.md."""
    rows = found["operators"]
    numbers = figures(found)
    compared = sum(row["class"] != "not compared" for row in rows.values())
    ways = sum(row["ways"] for row in rows.values())
    text = [
        _HEAD.format(
            torch=found["torch"], operators=len(rows), compared=compared, ways=f"{ways:,}"
        ),
        "| operators | |",
        "|---:|---|",
        *(f"| {numbers[name]} | {meaning} |" for name, meaning in CLASSES.items()),
        _BETWEEN.format(
            random=sum(row.get("random", False) for row in rows.values()),
            eager=sum("eager" in row for row in rows.values()),
            differences=sum(row.get("differences", False) for row in rows.values()),
        ),
        "| operator | stands | refused by | why |",
        "|---|---|---|---|",
        *(line for name, row in rows.items() for line in _refusals(name, row)),
        "",
        "## Not compared",
        "",
        "| operator | why |",
        "|---|---|",
        *(
            f"| `{name}` | {_cell(row['not right'][0])} |"
            for name, row in rows.items()
            if row["class"] == "not compared"
        ),
    ]
    return "\n".join(text) + "\n"


def _refusals(name: str, row: dict[str, Any]) -> list[str]:
    if row["class"] == "not compared":
        return []
    return [
        f"| `{name}` | {f['variant']} | {', '.join(f['methods'])} | {_cell(f)} |"
        for f in row.get("not right", ())
        if f["methods"]
    ]


def _reason(finding: dict[str, Any]) -> str:
    """What matters of an error's message."""
    why: str = finding.get("why", "")
    kind, _, message = why.partition(": ")
    if kind != "MissingDerivative":
        return why[:200]
    message = message.split(" Use gradient=")[0].rstrip(".")
    missing = re.search(r" needs (.+)s, and PyTorch has none of (.+)", message)
    return f"no {missing[1]} of {missing[2]}" if missing else message.partition(": ")[2] or message


def _cell(found: dict[str, Any]) -> str:
    shown = found["why"] if found["outcome"] == "refused" else f"{found['outcome']}: {found['why']}"
    return shown.rstrip(": ").replace("|", "\\|")


_HEAD = """# PyTorch's operators

PyTorch tests its operators on a database of sample inputs. `make operators` puts each of those that
take real or complex numbers into a small model: as a function of what adapts ("plain"), writing to
its first argument ("in place"), and as a function of what does not adapt but is meta-learned
("shared"). The loss and the meta-gradient of two tasks and two inner steps are held against the
plain loop over tasks in float64, by `Unrolled`, `Checkpointed`, `MixedMode` and `FirstOrder`,
executed eagerly and from a recording, which is replayed at other parameters as well. Right is what
differs by less than 1e-8 of the largest element (where an operator itself rounds to fewer digits,
by 100 of its roundings).

torch {torch}: {operators} operators and variants, {compared} compared, in {ways} ways. This page is
written by the run.
"""

_BETWEEN = """
{random} of them are random: what is right is then what `Unrolled` gives run eagerly, with the same
seed. {eager} cannot be recorded (most read a value back) and run eagerly, which is right and
logged. {differences} have no second derivative in PyTorch, or a wrong one, but are right here: the
model runs the same function written in other operations, and central differences say what is right.

## Refused

The error comes before any number and names the way out: where `MixedMode` refuses, `Unrolled()` and
`Checkpointed()` are right; where all exact methods do, `FirstOrder()` is right (and approximate);
or write the function in operations that have second derivatives, or leave it out of what adapts.
"""
