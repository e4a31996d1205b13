"""How long does one exact second-order meta-step take beside a loop over tasks?

    python benchmarks/meta_step.py [--rounds 15] [--threads 2] [--device cuda]

Same weights and episodes for all; the meta-gradients are checked equal in float64 before anything
is timed in float32; the contestants take turns within each round, so a slow moment hits all of
them. learn2learn and higher take part where they can be imported (benchmarks/peers/install.sh makes
such an environment). Writes benchmarks/results/DEVICE/meta_step.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import about, folder
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from hand_loop import hand_loop
from test_peers import with_higher, with_learn2learn

METHODS = {
    "fastmaml Unrolled": fm.gradients.Unrolled(),
    "fastmaml Checkpointed": fm.gradients.Checkpointed(),
    "fastmaml MixedMode": fm.gradients.MixedMode(),
    "fastmaml FirstOrder": fm.gradients.FirstOrder(),
}
EXACT = 1e-9  # relative, over the whole gradient, in float64
Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """What a meta-step works on."""

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    episodes: Callable[[], fm.Episodes]
    lr: float
    steps: int


def sinusoids() -> fm.Episodes:
    return fm.episodes.sinusoid(shots=10, queries=10, tasks=25, seed=0).sample()


def images() -> fm.Episodes:
    x = (torch.rand(32, 10, 1, 28, 28) > 0.8).float()
    labels = torch.arange(5).repeat(32, 1)
    return fm.Episodes(fm.Batch(x[:, :5], labels), fm.Batch(x[:, 5:], labels))


MLP = partial(fm.models.mlp, 1, 1)
CONV = "conv4-64 {}, 5-way 1-shot, 32 tasks, 1 step"
STRIDED, POOLED = (partial(fm.models.conv4, 5, pool=pool) for pool in ("stride", "max"))
WORKLOADS = [
    Workload("sinusoid MLP, 25 tasks, 1 step", MLP, F.mse_loss, sinusoids, 0.01, 1),
    Workload("sinusoid MLP, 25 tasks, 5 steps", MLP, F.mse_loss, sinusoids, 0.01, 5),
    Workload(CONV.format("strided"), STRIDED, F.cross_entropy, images, 0.1, 1),
    Workload(CONV.format("max-pool"), POOLED, F.cross_entropy, images, 0.1, 1),
]


def contestants(
    work: Workload, model: nn.Module, data: fm.Episodes
) -> dict[str, Callable[[], Any]]:
    """By name, a function that computes the meta-gradient."""
    given = (model, work.loss, data, work.lr, work.steps)
    found: dict[str, Callable[[], Any]] = {
        "hand-written loop": lambda: hand_loop(*given)[1],
        "hand-written loop, first order": lambda: hand_loop(*given, first_order=True)[1],
    }
    for name, run in {"learn2learn": with_learn2learn, "higher": with_higher}.items():
        if importlib.util.find_spec(name):
            found[name] = lambda run=run: run(*given, False)[1]
    for name, gradient in METHODS.items():
        maml = fm.MAML(model, work.lr, steps=work.steps, loss=work.loss, gradient=gradient)
        found[name] = lambda maml=maml: of(maml, data)
    return found


def of(maml: fm.MAML, data: fm.Episodes) -> Gradient:
    maml.zero_grad()
    maml(data).loss.backward()
    return {n: p.grad.clone() for n, p in maml.module.named_parameters()}


def difference(a: Gradient, b: Gradient) -> float:
    flat = [torch.cat([g[n].flatten() for n in b]) for g in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def timed(run: Callable[[], Gradient], device: str) -> float:
    """Milliseconds until the device has the gradient."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def check(work: Workload, device: str) -> dict[str, float]:
    """How far each gradient is from the hand-written loop's, in float64.

    Raises:
        SystemExit: an exact one is further than rounding allows; nothing is timed then.
    """
    torch.manual_seed(0)
    model, data = work.model().to(device, torch.float64), work.episodes().to(device, torch.float64)
    found = {name: dict(run()) for name, run in contestants(work, model, data).items()}
    reference = found["hand-written loop"]
    differences = {name: difference(gradient, reference) for name, gradient in found.items()}
    for name, error in differences.items():
        if "irst" not in name and error > EXACT:
            raise SystemExit(f"{work.name}: {name} is off the hand-written loop by {error:.1e}")
    return differences


def measure(work: Workload, rounds: int, device: str) -> dict[str, Any]:
    differences = check(work, device)
    torch.manual_seed(0)
    model, data = work.model().to(device), work.episodes().to(device)
    runs: dict[str, Callable[[], Any]] = contestants(work, model, data)
    rows: dict[str, Any] = {}
    for name, run in runs.items():
        first = timed(run, device)
        rows[name] = {"first_call_ms": round(first, 2), "difference": differences[name], "ms": []}
    for _ in range(rounds):
        for name, run in runs.items():
            rows[name]["ms"].append(timed(run, device))
    for row in rows.values():
        times = row.pop("ms")
        row["median_ms"] = round(statistics.median(times), 2)
        row["quartiles_ms"] = [round(q, 2) for q in statistics.quantiles(times, n=4)[::2]]
    return {"workload": work.name, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for work in WORKLOADS:
        found.append(measure(work, options.rounds, options.device))
        print(found[-1]["workload"])
        for name, row in found[-1]["rows"].items():
            print(f"  {name:32} {row['median_ms']:9.2f} ms  {row['quartiles_ms']}")
    path = options.json or folder(options.device) / "meta_step.json"
    result = {**about(options.device), "rounds": options.rounds, "workloads": found}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
