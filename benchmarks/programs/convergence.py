"""Accuracy against wall-clock and iterations: what does second order bring over first order?

    python -m benchmarks.programs.convergence [--data omniglot] [--device cuda] [--quick]

The same network from the same weights on the same meta-batches, several seeds, one gradient method
at a time, in turns. Accuracy is on classes never seen in meta-training, the same tasks each time;
the clock stands still while it is measured, and runs while a meta-step is recorded. Before and
after training the angle between the method's direction and the meta-gradient is measured on one
meta-batch. All methods are compared in float64 with a loop written by hand first.

Omniglot is looked for in FASTMAML_DATA, else in ../shared/data; where it is absent the result says
so. `digits` are always there. Writes benchmarks/results/DEVICE/convergence.json and
docs/figures/convergence.png.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import fastmaml as fm
from benchmarks.figures.convergence import draw
from benchmarks.figures.plots import plot
from benchmarks.programs.growth import METHODS, errors
from benchmarks.support.results import ROOT, about, place, save, synchronize
from benchmarks.support.workloads import Workload
from fastmaml.training.evaluation import evaluate
from fastmaml.training.intervals import half_width

DEFAULT = ("Unrolled", "FirstOrder", "Reptile")
TEST_SEED = 999
TARGETS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class Setting:
    """Episodes, network, inner loop and outer loop."""

    data: str
    ways: int = 5
    shots: int = 1
    queries: int = 5
    tasks: int = 16
    filters: int = 32
    pool: str = "max"
    image_size: int = 28
    lr: float = 0.4
    steps: int = 1
    eval_steps: int = 5
    meta_lr: float = 2e-3
    iterations: int = 300
    every: int = 30
    test_tasks: int = 100

    def episodes(self, split: str, seed: int, device: str, root: Path | None) -> Any:
        """Meta-batches of the split."""
        numbers = {n: getattr(self, n) for n in ("ways", "shots", "queries", "tasks")}
        make = fm.episodes.digits
        if self.data == "omniglot":
            make, numbers = fm.episodes.omniglot, numbers | {"root": root, "download": False}
        return make(**numbers, split=split, seed=seed, device=device)

    def maml(self, method: str, device: str) -> fm.MAML:
        """As the seed that is set makes it."""
        model = fm.models.conv4(
            self.ways, filters=self.filters, pool=self.pool, image_size=self.image_size
        ).to(device)
        return fm.MAML(
            model, self.lr, steps=self.steps, loss=F.cross_entropy, gradient=METHODS[method]
        )

    def workload(self) -> Workload:
        """For the comparison with the loop: two tasks, of random images."""
        return Workload(
            self.data, self.data, f"{self.data}, {self.ways}-way {self.shots}-shot", "conv4", 2,
            self.steps, self.lr, self.ways * self.shots, self.ways * self.queries, self.ways,
            (1, 28, 28), self.filters,
        )  # fmt: skip


SETTINGS = {
    # One large inner step, and several small ones: the Hessian term is large, and small.
    "omniglot": (
        Setting("omniglot"),
        Setting("omniglot", steps=5, lr=0.1, iterations=150, every=15),
    ),
    "digits": (
        Setting(
            "digits", shots=5, pool="stride", image_size=8, lr=0.1, steps=2, eval_steps=2,
            meta_lr=1e-3,
        ),
    ),
}  # fmt: skip


def trained(
    setting: Setting, method: str, seed: int, options: argparse.Namespace, root: Path | None
) -> tuple[list[list[float]], list[float]]:
    """A run: [iterations, seconds, accuracy] at every evaluation, and two cosines.

    Those of the method's direction with the meta-gradient, before and after training.
    """
    torch.manual_seed(seed)
    maml = setting.maml(method, options.device)
    optimizer = torch.optim.Adam(maml.parameters(), setting.meta_lr)
    source = iter(setting.episodes("train", seed, options.device, root))
    unseen = setting.episodes("test", TEST_SEED, options.device, root)
    fixed = next(iter(setting.episodes("train", TEST_SEED, options.device, root)))
    cosines = [cosine(maml, method, fixed)]
    curve, seconds = [[0, 0.0, accuracy(maml, setting, unseen)]], 0.0
    for iteration in range(1, setting.iterations + 1):
        start = time.perf_counter()
        out = maml(next(source))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        synchronize(options.device)
        seconds += time.perf_counter() - start
        if iteration % setting.every == 0 or iteration == setting.iterations:
            curve.append([iteration, round(seconds, 3), accuracy(maml, setting, unseen)])
    return curve, [*cosines, cosine(maml, method, fixed)]


def cosine(maml: fm.MAML, method: str, episodes: fm.Episodes) -> float:
    """Of the angle between the method's direction and the meta-gradient."""
    found = []
    for name in ("Unrolled", method):
        maml.zero_grad()
        maml(episodes, gradient=METHODS[name]).loss.backward()
        found.append(torch.cat([p.grad.double().flatten() for p in maml.parameters()]))
    maml.zero_grad()
    return round(float(F.cosine_similarity(*found, dim=0)), 4)


def accuracy(maml: fm.MAML, setting: Setting, unseen: fm.EpisodeSampler) -> float:
    """On the same tasks each time."""
    start = unseen.state_dict()
    found = evaluate(maml, iter(unseen), setting.test_tasks, setting.eval_steps)
    unseen.load_state_dict(start)
    return round(found.means[-1], 5)


def summary(curves: list[list[list[float]]]) -> dict[str, Any]:
    """Over the seeds: the end, a meta-step's time, and when targets were reached by all of them."""
    last = [curve[-1][2] for curve in curves]
    spread = statistics.stdev(last) if len(last) > 1 else None
    # From the first evaluation on, so that the recording is not in it.
    steady = [1e3 * (c[-1][1] - c[1][1]) / (c[-1][0] - c[1][0]) for c in curves if len(c) > 2]
    reached = {}
    for target in TARGETS:
        first = [next((p for p in curve if p[2] >= target), None) for curve in curves]
        there = [p for p in first if p is not None]
        if len(there) == len(curves):
            means = [statistics.mean(p[i] for p in there) for i in (0, 1)]
            reached[str(target)] = {"iterations": round(means[0]), "seconds": round(means[1], 2)}
    return {
        "accuracy": round(statistics.mean(last), 5),
        "interval_95": spread and round(half_width(spread, len(last)), 5),
        "ms_an_iteration": round(statistics.median(steady), 3) if steady else None,
        "reached": reached,
    }


def measured(
    setting: Setting, options: argparse.Namespace, root: Path | None
) -> Iterator[dict[str, Any]]:
    """The result so far, after every run."""
    found: dict[str, dict[str, Any]] = {
        name: {"curves": [], "cosines": []} for name in options.methods
    }
    for seed in range(options.seeds):
        for name, one in found.items():
            curve, cosines = trained(setting, name, seed, options, root)
            one["curves"].append(curve)
            one["cosines"].append(cosines)
            one |= summary(one["curves"])
            iterations, seconds, last = one["curves"][-1][-1]
            print(
                f"K={setting.steps}, rate {setting.lr}, seed {seed}, {name}: {last:.3f} after "
                f"{iterations} iterations, {seconds} s",
                flush=True,
            )
            begun = {n: x for n, x in found.items() if x["curves"]}
            yield {"setting": asdict(setting), "methods": begun}


def data_folder(data: str) -> Path | None:
    """Where Omniglot is; None for the digits, which come along.

    Raises:
        FileNotFoundError: it is not there.
    """
    if data == "digits":
        return None
    folder = Path(os.environ.get("FASTMAML_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "omniglot28.npz").is_file():
        raise FileNotFoundError("no omniglot28.npz: set FASTMAML_DATA to the folder that has it")
    return folder


def chosen(options: argparse.Namespace) -> list[Setting]:
    found = SETTINGS[options.data]
    if options.quick:
        small = {"tasks": 2, "filters": 8, "iterations": 4, "every": 2, "test_tasks": 4}
        return [replace(setting, **small) for setting in found]
    if options.iterations:
        return [replace(setting, iterations=options.iterations) for setting in found]
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", choices=SETTINGS, default="omniglot")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, help="of the outer loop")
    parser.add_argument("--quick", action="store_true", help="a few iterations of one seed")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--png", type=Path, help="where the plot goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.seeds = 1 if options.quick else options.seeds
    path = place(options.json, options.device, "convergence", options.quick)
    head = {**about(options.device), "quick": options.quick}
    try:
        root = data_folder(options.data)
    except FileNotFoundError as reason:
        print(f"nothing is trained: {reason}")
        if not path.exists():  # results of another machine stay
            save(path, {**head, "absent": str(reason)})
        sys.exit(0)
    done: list[dict[str, Any]] = []
    for setting in chosen(options):
        differences = errors(setting.workload(), options.device, options.methods)
        for result in measured(setting, options, root):
            result["differences"] = differences
            save(path, {**head, "settings": [*done, result]})
        done.append(result)
    docs = ROOT / "docs" / "figures" / "convergence.png"
    plot(path, options.png or (path.with_suffix(".png") if options.quick else docs), draw)


if __name__ == "__main__":
    main()
