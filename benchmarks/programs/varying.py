"""What does it cost that something is another at every call: sizes, or weights of steps?

    python -m benchmarks.programs.varying [--subjects shots weights] [--calls 60] [--quick]

Numbers of shots that were never seen before, lengths of token sequences, MAML++'s annealed weights
of inner steps, and activations that overwrite what they are given. Beside fastmaml stands the loop
by hand, and fastmaml where nothing varies. At calls of every kind the meta-gradients are compared
in float64 first; then the contestants take turns, call by call, and the first half of the calls is
not counted. Writes benchmarks/results/DEVICE/varying.json after every row.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from benchmarks.support.reference import Parameters, batch_loss, relative, sgd_step
from benchmarks.support.results import about, place, quartiles, save
from benchmarks.support.workloads import VOCABULARY, transformer
from fastmaml.models import conv4, mlp
from fastmaml.training.schedules import multi_step_weights

LOOP, OURS, STEADY = "loop by hand", "fastmaml", "fastmaml, nothing varies"


class Given(NamedTuple):
    """Of one call."""

    episodes: fm.Episodes
    weights: Sequence[float] | None = None


class Subject(NamedTuple):
    """What varies.

    Attributes:
        title: the workload in words.
        varies: what is another at every call.
        make: the model, given whether it is the one of which something varies.
        loss: of a task.
        steps: inner steps.
        lr: the inner rate.
        call: what the call of this number is given, and what it would be if nothing varied.
    """

    title: str
    varies: str
    make: Callable[[bool], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    steps: int
    lr: float
    call: Callable[[int, bool], Given]


def waves(i: int, varies: bool) -> Given:
    shots = 1 + (i * 7) % 60 if varies else 30
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(8, shots, 1, generator=generator)
    return Given(fm.Episodes(fm.Batch(x, x.sin()), fm.Batch(x, x.cos())))


def tokens(i: int, varies: bool) -> Given:
    generator = torch.Generator().manual_seed(i)

    def batch(length: int) -> fm.Batch:
        ids = torch.randint(VOCABULARY, (4, 8, length), generator=generator)
        return fm.Batch(ids, torch.randint(5, (4, 8), generator=generator))

    lengths = (16 + (i * 5) % 17, 16 + (i * 11) % 17) if varies else (24, 24)
    return Given(fm.Episodes(*map(batch, lengths)))


def images(i: int, tasks: int) -> fm.Episodes:
    generator = torch.Generator().manual_seed(i)
    labels = torch.arange(5).repeat(tasks, 1)

    def batch(shots: int) -> fm.Batch:
        x = torch.randn(tasks, 5 * shots, 1, 28, 28, generator=generator)
        return fm.Batch(x, labels.repeat(1, shots))

    return fm.Episodes(batch(1), batch(5))


def annealed(i: int, varies: bool) -> Given:
    weights = multi_step_weights(5, i, 1000) if varies else torch.full((5,), 0.2)
    assert weights is not None
    return Given(images(i, 4), weights.tolist())


def in_place(varies: bool) -> nn.Module:
    def block(channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=varies),
            nn.MaxPool2d(2),
        )

    return nn.Sequential(block(1), block(32), block(32), block(32), nn.Flatten(), nn.Linear(32, 5))


SUBJECTS = {
    "shots": Subject(
        "sinusoid MLP 1-40-40-1, 8 tasks, K=3", "shots: 1 to 60, new at every call",
        lambda _: mlp(1, 1), F.mse_loss, 3, 0.01, waves,
    ),
    "lengths": Subject(
        "2-layer transformer, d=128, 8 texts, 4 tasks, K=2",
        "lengths of support and query: 16 to 32 tokens",
        lambda _: transformer(5), F.cross_entropy, 2, 0.01, tokens,
    ),
    "weights": Subject(
        "conv4-32 on 28x28, 5-way 1-shot, 4 tasks, K=5", "weights of the steps' losses",
        lambda _: conv4(5, filters=32, image_size=28), F.cross_entropy, 5, 0.1, annealed,
    ),
    "in-place": Subject(
        "conv4-32 on 28x28, 5-way 1-shot, 8 tasks, K=3", "`nn.ReLU(inplace=True)`",
        in_place, F.cross_entropy, 3, 0.1, lambda i, _: Given(images(i, 8)),
    ),
}  # fmt: skip


def by_hand(model: nn.Module, subject: Subject, given: Given) -> Parameters:
    """One task at a time, nothing clever; with weights, the query loss after every step counts."""
    theta = dict(model.named_parameters())
    weights = given.weights or [0.0] * (subject.steps - 1) + [1.0]
    losses = []
    for task in given.episodes:
        adapted = theta
        for weight in weights:
            loss = batch_loss(model, subject.loss, adapted, task.support)
            adapted = sgd_step(adapted, loss, subject.lr, first_order=False)
            if weight:
                losses.append(weight * batch_loss(model, subject.loss, adapted, task.query))
    total = torch.stack(losses).sum() / given.episodes.tasks
    return dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))


Step = Callable[[Given], Parameters]


def ours(model: nn.Module, subject: Subject) -> Step:
    maml = fm.MAML(model, subject.lr, steps=subject.steps, loss=subject.loss)

    def step(given: Given) -> Parameters:
        maml.zero_grad()
        maml(given.episodes, step_weights=given.weights).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    return step


def model_of(subject: Subject, varies: bool) -> nn.Module:
    torch.manual_seed(0)
    return subject.make(varies)


def error(subject: Subject, calls: int) -> float:
    """The largest of some calls, in float64; all are made, as they are learned from."""
    model = model_of(subject, True).double()
    step, worst = ours(copy.deepcopy(model), subject), 0.0
    for i in range(calls):
        given = subject.call(i, True)
        given = given._replace(episodes=given.episodes.to(torch.float64))
        found = step(given)
        if i < 3 or i % 5 == 0:
            worst = max(worst, relative(found, by_hand(model, subject, given)))
    return worst


def measured(subject: Subject, calls: int) -> dict[str, Any]:
    """Seconds of the second half of the calls."""
    loop_model = model_of(subject, True)
    steps: dict[str, tuple[Step, bool]] = {
        LOOP: (lambda given: by_hand(loop_model, subject, given), True),
        OURS: (ours(model_of(subject, True), subject), True),
        STEADY: (ours(model_of(subject, False), subject), False),
    }
    turns: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(calls):
        for name, (step, varies) in steps.items():
            given = subject.call(i, varies)
            start = time.perf_counter()
            step(given)
            turns[name].append(time.perf_counter() - start)
    counted = {name: seconds[calls // 2 :] for name, seconds in turns.items()}
    return {
        name: {"median_s": statistics.median(seconds), "quartiles_s": quartiles(seconds, 6)}
        for name, seconds in counted.items()
    }


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
    path = place(options.json, "cpu", "varying", options.quick)
    calls = 10 if options.quick else options.calls
    result: dict[str, Any] = {**about("cpu"), "quick": options.quick, "calls": calls, "rows": []}
    for key in options.subjects:
        subject = SUBJECTS[key]
        row: dict[str, Any] = {"subject": key, "title": subject.title, "varies": subject.varies}
        with sdpa_kernel(SDPBackend.MATH):  # for the loop: others have no second derivative
            row["error"] = error(subject, min(calls, 20))
            if not row["error"] < 1e-9:
                raise SystemExit(f"{subject.title}: {row['error']:.1e} off the loop.")
            row["contestants"] = measured(subject, calls)
        result["rows"].append(row)
        save(path, result)
        print(subject.title, row["error"], row["contestants"], flush=True)


if __name__ == "__main__":
    main()
