"""Tables of encoders that were trained in several ways, on data sets that they did not see."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.tables.cells import table
from fastmaml.training.intervals import half_width

CONTROL = "multi-task"
"""What the others are compared with, of those that were trained on the same data sets."""
SHOWN = {"held": "held-out intents", "as meta-learned": "as meta-learned"}
OTHERS = (("mrpc", "f1"), ("cola", "matthews"), ("stsb", "pearson"))
Row = dict[str, Any]


def accuracies(found: Row, shots: str) -> str:
    """A row a method, with the adaptation that is best on the data sets that were trained on."""
    cells = classified(found, shots)
    rows = []
    for name, method in found["methods"].items():
        if not any(shots in test for test in method["tests"].values()):
            continue
        way = chosen(method, shots)
        test = method["tests"][way][shots]
        each = [[100 * x for x in test["scores"][cell]["accuracy"]] for cell in cells]
        rows.append(
            [
                name,
                adaptation(way, test),
                *(interval(draws) for draws in each),
                f"{statistics.mean(statistics.mean(draws) for draws in each):.1f}",
                against_control(found, name, shots, cells),
                training(method),
            ]
        )
    header = ["encoder", "adaptation", *(SHOWN.get(cell, cell) for cell in cells)]
    return table([*header, "mean", f"less {CONTROL}", "training, CPU seconds"], rows)


def of_every_adaptation(found: Row, shots: str) -> str:
    """The mean over the data sets, a row a method and a column an adaptation."""
    cells = classified(found, shots)
    ways = list(dict.fromkeys(way for m in found["methods"].values() for way in m["tests"]))
    rows = []
    for name, method in found["methods"].items():
        means = [
            f"{mean(method['tests'][way][shots], cells):.1f}" if way in method["tests"] else ""
            for way in ways
        ]
        rows.append([name, *means])
    return table(["encoder", *ways], rows)


def other_scores(found: Row) -> str:
    """F1, and the correlations of Matthews and Pearson, by examples a class."""
    columns = [(cell, metric, str(s)) for cell, metric in OTHERS for s in found["shots"]]
    rows = []
    for name, method in found["methods"].items():
        row = [name]
        for cell, metric, shots in columns:
            if not any(shots in test for test in method["tests"].values()):
                row.append("")
                continue
            scores = method["tests"][chosen(method, shots)][shots]["scores"][cell]
            row.append(interval([100 * x for x in scores[metric]]) if metric in scores else "")
        rows.append(row)
    return table(["encoder", *(f"{cell}, {metric}, {s}" for cell, metric, s in columns)], rows)


def study(found: Row) -> str:
    """Everything, with what it means."""
    few, many = map(str, found["shots"])
    s = found["setting"]
    layers = s["frozen_layers"]
    frozen = f", of which the first {layers} stay as they are" if layers else ""
    note = (
        f"Accuracy in per cent; {found['model']}{frozen}; {s['draws']} draws of support sets, the "
        f"same for all, with 95% intervals over them ({s['test_query']} query rows that are the "
        f"same in all draws, or {s['test_queries']} a class of five intents). The difference is of "
        f"the same draws, with its interval over the data sets, and only with encoders that were "
        f"trained on the same data: {', '.join(found['train'])} and, unless a row says GLUE, 100 "
        "intents of CLINC150. "
        f"Meta-batches: {s['tasks']} tasks of {s['support'] + s['query']} rows, and as many rows "
        f"for {CONTROL}. Outer rates, adaptations, their rates and steps: the best on the data "
        f"sets that were trained on. {found['device']}, torch {found['torch']}."
    )
    parts = [
        f"With {few} examples a class:",
        accuracies(found, few),
        f"With {many}:",
        accuracies(found, many),
        note,
        f"Every adaptation, {few} examples a class, mean accuracy over the data sets:",
        of_every_adaptation(found, few),
        "Other scores (times 100), of the same adaptations. Rates are the best for classes; "
        "STS-B's values need smaller ones, so that its correlations say little:",
        other_scores(found),
    ]
    return "\n\n".join(parts)


def classified(found: Row, shots: str) -> list[str]:
    """The data sets that have an accuracy."""
    method = next(iter(found["methods"].values()))
    scores = next(iter(method["tests"].values()))[shots]["scores"]
    return [cell for cell in found["held_out"] if "accuracy" in scores[cell]]


def chosen(method: Row, shots: str) -> str:
    """The adaptation that is best on the data sets that were trained on."""
    tests = method["tests"]
    tuned = [way for way in tests if shots in tests[way] and not way.startswith("halfway")]
    return max(tuned, key=lambda way: tests[way][shots]["training_data_sets"])


def mean(test: Row, cells: list[str]) -> float:
    means = [statistics.mean(test["scores"][cell]["accuracy"]) for cell in cells]
    return 100 * statistics.mean(means)


def against_control(found: Row, name: str, shots: str, cells: list[str]) -> str:
    """The mean of the differences on the same draws, with its interval over the data sets."""
    methods = found["methods"]
    control = CONTROL if methods[name]["intents"] else f"{CONTROL}, GLUE"
    if name == control or control not in methods:
        return ""
    one, other = (
        methods[n]["tests"][chosen(methods[n], shots)][shots]["scores"] for n in (name, control)
    )
    differences = [
        statistics.mean(
            100 * (a - b)
            for a, b in zip(one[cell]["accuracy"], other[cell]["accuracy"], strict=True)
        )
        for cell in cells
    ]
    return signed(interval(differences))


def signed(text: str) -> str:
    return text if text.startswith("-") else f"+{text}"


def interval(values: list[float]) -> str:
    if any(math.isnan(x) for x in values):
        return "diverged"
    width = half_width(statistics.stdev(values), len(values))
    return f"{statistics.mean(values):.1f} ± {width:.1f}"


def adaptation(way: str, test: Row) -> str:
    if not test["steps"]:
        return way
    rate = "" if test["lr"] == "as learned" else f" at {test['lr']}"
    return f"{way}, {test['steps']} steps{rate}"


def training(method: Row) -> str:
    seconds = method.get("training_cpu_seconds")
    return "" if seconds is None else f"{seconds:.0f}"
