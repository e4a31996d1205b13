"""What methods learn on the sinusoid with the same number of outer iterations.

    python -m benchmarks.programs.methods [--quick]

The same tasks in the same order, several seeds. Each method has its paper's inner loop where the
paper has sinusoids (MAML, CAVIA), else MAML's rate; nothing is tuned. The error is the mean squared
one on tasks that were never seen, after as many inner steps as in training. What an iteration
costs is the business of other programs. Writes benchmarks/results/DEVICE/methods.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import fastmaml as fm
from benchmarks.support.results import about, place, save
from fastmaml import rules
from fastmaml.training.intervals import half_width

TEST_SEED, TEST_TASKS, SHOTS, TASKS, META_LR = 999, 600, 10, 25, 1e-3
LR = 0.01
LONG = 10
"""Inner steps of the proximal loop."""


def _maml(**options: Any) -> fm.MAML:
    return fm.MAML(fm.models.mlp(1, 1), loss=F.mse_loss, **options)


def _proximal(gradient: fm.gradients.GradientMethod) -> fm.MAML:
    rule = rules.chain(rules.Proximal(0.5), rules.SGD(LR))
    return _maml(rule=rule, steps=LONG, gradient=gradient)


def _cavia() -> fm.MAML:
    model = fm.models.WithContext(fm.models.mlp(1 + 5, 1), 5)
    return fm.MAML(model, 1.0, loss=F.mse_loss, scope="context")


METHODS: dict[str, Callable[[], fm.MAML]] = {
    "MAML": lambda: _maml(lr=LR),
    "Meta-SGD": lambda: _maml(rule=rules.MetaSGD(LR)),
    "Meta-Curvature": lambda: _maml(rule=rules.MetaCurvature(LR)),
    "KFO": lambda: _maml(rule=rules.KFO(LR)),
    "ALFA": lambda: _maml(rule=rules.ALFA(LR)),
    "CAVIA": _cavia,
    f"iMAML, {LONG} steps": lambda: _proximal(fm.gradients.Implicit()),
    f"the same {LONG} steps, exactly": lambda: _proximal(fm.gradients.Unrolled()),
}


def trained(name: str, seed: int, iterations: int, device: str) -> float:
    """The error on unseen tasks."""
    torch.manual_seed(seed)
    maml = METHODS[name]().to(device)
    optimizer = torch.optim.Adam(maml.parameters(), META_LR)
    source = fm.episodes.sinusoid(SHOTS, tasks=TASKS, seed=seed, device=device)
    for _ in range(iterations):
        optimizer.zero_grad()
        maml(source.sample()).loss.backward()
        optimizer.step()
    unseen = fm.episodes.sinusoid(SHOTS, 100, TEST_TASKS, TEST_SEED, device).sample()
    return float(maml.evaluate(unseen).loss)


def summary(errors: list[float]) -> dict[str, Any]:
    """Over the seeds: the error with its interval."""
    spread = statistics.stdev(errors) if len(errors) > 1 else None
    return {
        "errors": [round(x, 5) for x in errors],
        "error": round(statistics.mean(errors), 5),
        "interval_95": spread and round(half_width(spread, len(errors)), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2000, help="of the outer loop")
    parser.add_argument("--quick", action="store_true", help="a few iterations of one seed")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds, iterations = (1, 4) if options.quick else (options.seeds, options.iterations)
    path = place(options.json, options.device, "methods", options.quick)
    head = {**about(options.device), "quick": options.quick, "iterations": iterations}
    runs: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(seeds):
        for name, one in runs.items():
            one.append(trained(name, seed, iterations, options.device))
            print(f"seed {seed}, {name}: {one[-1]:.4f}", flush=True)
        found = {name: summary(one) for name, one in runs.items()}
        save(path, {**head, "seeds": seed + 1, "methods": found})


if __name__ == "__main__":
    main()
