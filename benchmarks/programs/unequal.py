"""What does it cost that tasks have different numbers of rows?

    python -m benchmarks.programs.unequal [--subjects small wide] [--calls 60] [--quick]

Tables of 200 tasks of 5 to 60 rows, half of them support: filled up with rows that do not count
(mask), and in buckets of like sizes. Beside them stand tasks of equal size with as many rows in
all, and the loop by hand over the unequal tasks as they are. The mask's meta-gradients are
compared with that loop's in float64 first; then the contestants take turns, call by call, each with
a new meta-batch, drawn before the clock runs, and the first half of the calls is not counted. The
clock is the process's own, as others may work on the machine. Rows that count are told, as buckets
lend fewer of them. Writes benchmarks/results/DEVICE/unequal.json
after every row.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastmaml as fm
from benchmarks.support.reference import Parameters, batch_loss, relative, sgd_step
from benchmarks.support.results import about, place, quartiles, save

TASKS, LR, STEPS, FEATURES = 16, 0.05, 5, 8
EQUAL, MASK, BUCKETS, LOOP = "equal sizes", "mask", "buckets", "loop by hand"


class Subject(NamedTuple):
    """A network.

    Attributes:
        title: it in words.
        hidden: its widths.
    """

    title: str
    hidden: tuple[int, ...]


SUBJECTS = {
    "small": Subject("MLP 8-64-64-1", (64, 64)),
    "wide": Subject("MLP 8-256-256-256-1", (256, 256, 256)),
}


def rows(low: int, high: int) -> dict[str, list[Any]]:
    """A table of 200 tasks."""
    draw = random.Random(0)
    found: dict[str, list[Any]] = {"task": [], "y": [], **{f"x{i}": [] for i in range(FEATURES)}}
    for task in range(200):
        slopes = [draw.gauss(0, 1) for _ in range(FEATURES)]
        for _ in range(draw.randint(low, high)):
            x = [draw.gauss(0, 1) for _ in range(FEATURES)]
            for name, value in zip(found, (f"t{task}", 0.0, *x), strict=True):
                found[name].append(value)
            found["y"][-1] = sum(a * b for a, b in zip(slopes, x, strict=True))
    return found


def sources(dtype: torch.dtype = torch.float32) -> dict[str, fm.episodes.Table]:
    unequal, common = rows(5, 60), {"task": "task", "target": "y", "split": "all", "dtype": dtype}
    mean = round(len(unequal["task"]) / 200)
    alike: dict[str, Any] = {"shots": mean // 2, "queries": mean - mean // 2}
    return {
        EQUAL: fm.episodes.table(rows(mean, mean), **alike, **common),
        MASK: fm.episodes.table(unequal, **common),
        BUCKETS: fm.episodes.table(unequal, unequal="buckets", **common),
        LOOP: fm.episodes.table(unequal, **common),
    }


def alone(batch: fm.Batch) -> fm.Batch:
    """One task's rows that count."""
    there = batch.targets["counts"][0]
    return fm.Batch(batch.inputs[:, there], batch.targets["values"][:, there])


def by_hand(model: nn.Module, episodes: fm.Episodes) -> Parameters:
    """One task at a time, as it is."""
    theta = dict(model.named_parameters())
    losses = []
    for task in episodes:
        adapted, support = theta, alone(task.support)
        for _ in range(STEPS):
            loss = batch_loss(model, fm.losses.regression, adapted, support)
            adapted = sgd_step(adapted, loss, LR, first_order=False)
        losses.append(batch_loss(model, fm.losses.regression, adapted, alone(task.query)))
    total = torch.stack(losses).mean()
    return dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))


Step = Callable[[fm.Episodes], Parameters]


def ours(model: nn.Module) -> Step:
    maml = fm.MAML(model, LR, steps=STEPS, loss=fm.losses.regression)

    def step(episodes: fm.Episodes) -> Parameters:
        maml.zero_grad()
        maml(episodes).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    return step


def model_of(subject: Subject) -> nn.Module:
    torch.manual_seed(0)
    return fm.models.mlp(FEATURES, 1, subject.hidden)


def error(subject: Subject, calls: int) -> float:
    """The largest of some calls, in float64."""
    model, source = model_of(subject).double(), sources(torch.float64)[MASK]
    step, worst = ours(model), 0.0
    for _ in range(calls):
        episodes = source.sample()
        worst = max(worst, relative(step(episodes), by_hand(model, episodes)))
    return worst


def measured(subject: Subject, calls: int) -> dict[str, Any]:
    """Seconds of the second half of the calls, of drawing and of the step, and rows that count."""
    loop = model_of(subject)
    steps: dict[str, Step] = {name: ours(model_of(subject)) for name in (EQUAL, MASK, BUCKETS)}
    steps[LOOP] = lambda episodes: by_hand(loop, episodes)
    drawn, turns, counting = ({name: [] for name in steps} for _ in range(3))  # type: ignore[var-annotated]
    given = sources()
    for _ in range(calls):
        for name, step in steps.items():
            start = time.process_time()
            episodes = given[name].sample()
            middle = time.process_time()
            step(episodes)
            turns[name].append(time.process_time() - middle)
            drawn[name].append(middle - start)
            counting[name].append(sum(map(counted, (episodes.support, episodes.query))))
    half = calls // 2
    return {
        name: {
            "median_s": statistics.median(turns[name][half:]),
            "quartiles_s": quartiles(turns[name][half:], 6),
            "drawn_s": statistics.median(drawn[name][half:]),
            "rows": statistics.mean(counting[name]),
        }
        for name in steps
    }


def counted(batch: fm.Batch) -> int:
    targets: Tensor | Mapping[str, Tensor] = batch.targets
    if isinstance(targets, Tensor):
        return targets.shape[0] * targets.shape[1]
    return int(targets["counts"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="few calls")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = place(options.json, "cpu", "unequal", options.quick)
    calls = 10 if options.quick else options.calls
    result: dict[str, Any] = {**about("cpu"), "quick": options.quick, "calls": calls, "rows": []}
    for key in options.subjects:
        subject = SUBJECTS[key]
        row: dict[str, Any] = {"subject": key, "title": subject.title}
        row["error"] = error(subject, 5)
        if not row["error"] < 1e-9:
            raise SystemExit(f"{subject.title}: {row['error']:.1e} off the loop.")
        row["contestants"] = measured(subject, calls)
        result["rows"].append(row)
        save(path, result)
        print(subject.title, row["error"], row["contestants"], flush=True)


if __name__ == "__main__":
    main()
