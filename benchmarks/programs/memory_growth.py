"""Peak memory of a meta-step against the number of inner steps, for every exact gradient method.

    python -m benchmarks.programs.memory_growth [--device cuda]

The unit is one copy of the adapted parameters for every task; the figure of interest is how many
copies one more inner step costs. On the CPU the peak is counted in live tensor bytes
(`LiveMemory`) and checked against the peak resident memory of a fresh process
for each point; on CUDA the allocator tells. Writes benchmarks/results/DEVICE/memory_growth.json
and docs/figures/memory_growth.png.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from benchmarks.figures.memory import draw
from benchmarks.figures.plots import plot
from benchmarks.support.results import ROOT, about, place, save
from fastmaml.measure.profile import LiveMemory

METHODS = {
    "Unrolled": fm.gradients.Unrolled(),
    "Checkpointed": fm.gradients.Checkpointed(),
    "MixedMode": fm.gradients.MixedMode(),
}
STEPS = (1, 2, 4, 6, 8, 12, 16, 20)


@dataclass(frozen=True)
class Setting:
    """A deep MLP, and a batch whose activations outweigh one copy of its parameters."""

    layers: int = 8
    width: int = 512
    examples: int = 512
    tasks: int = 2
    lr: float = 0.3
    device: str = "cpu"

    def model(self, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(self.layers):
            layers += [nn.Linear(self.width, self.width), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)  # else signal and curvature die out
        return nn.Sequential(*layers[:-1]).to(self.device, dtype)

    def episodes(self, dtype: torch.dtype) -> fm.Episodes:
        x = torch.randn(4, self.tasks, self.examples, self.width).to(self.device, dtype)
        return fm.Episodes(fm.Batch(x[0], x[1]), fm.Batch(x[2], x[3]))

    def parameters(self) -> int:
        return self.layers * self.width * (self.width + 1)

    def copy_bytes(self) -> int:
        """One copy of the adapted parameters for every task, in float32."""
        return 4 * self.tasks * self.parameters()


class MetaStep:
    """One meta-step of a method, ready to run."""

    def __init__(
        self,
        setting: Setting,
        method: fm.gradients.GradientMethod,
        steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = setting.model(dtype)
        self.episodes = setting.episodes(dtype)
        self.maml = fm.MAML(
            self.model,
            setting.lr,
            steps=steps,
            loss=F.mse_loss,
            gradient=method,
            tasks_chunk=setting.tasks,  # else fewer tasks at a time may run, and share memory
            spot_checks=False,
        )
        self.maml.explain(self.episodes)  # plans, so that only the step itself is measured

    def __call__(self) -> None:
        """Leaves the meta-gradient in ``.grad``."""
        self.maml(self.episodes).loss.backward()

    def gradient(self) -> Tensor:
        """The meta-gradient as one vector."""
        self.maml.zero_grad()
        self()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def gradient_differences(setting: Setting, steps: int) -> dict[str, float]:
    """How far each method's meta-gradient is from Unrolled's, relative, in float64.

    FirstOrder is among them: what it misses is the size of the second-order term.
    """
    exact = MetaStep(setting, fm.gradients.Unrolled(), steps, torch.float64).gradient()
    others = {**METHODS, "FirstOrder": fm.gradients.FirstOrder()}
    found = {
        name: MetaStep(setting, m, steps, torch.float64).gradient() for name, m in others.items()
    }
    return {name: float((g - exact).norm() / exact.norm()) for name, g in found.items()}


def live_peak(setting: Setting, method: str, steps: int) -> int:
    """Peak bytes that the meta-step adds to the model and the episodes."""
    if setting.device == "cuda":
        MetaStep(setting, METHODS[method], 1)()  # the libraries' own workspaces
    return peak_bytes(MetaStep(setting, METHODS[method], steps), setting.device)


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Of a first call, which records: a recording that is replayed on a GPU allocates nothing."""
    if device == "cpu":
        with LiveMemory() as memory:
            step()
        return memory.peak_bytes
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def resident_peak(setting: Setting, method: str, steps: int) -> int | None:
    """The same from the peak resident memory of a fresh process; None where Linux is not."""
    if setting.device != "cpu" or not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-m", "benchmarks.programs.memory_growth", "--point", method]
    command += [str(steps), json.dumps(asdict(setting))]
    # Freed tensors go back to the system at once, so that the peak is that of live memory.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


def resident_point(method: str, steps: str, setting: str) -> int:
    """What the fresh process measures."""
    MetaStep(Setting(layers=1, width=8, examples=8), METHODS[method], 1)()  # loads torch's parts
    step = MetaStep(Setting(**json.loads(setting)), METHODS[method], int(steps))
    before = _status_bytes("VmRSS")
    step()
    # Not `resource.getrusage`: ru_maxrss survives exec, a child begins with its parent's.
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    """Resident bytes of this process: VmRSS is now, VmHWM the peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field} line: use --no-resident.")
    return 1024 * int(found[1])


def growth(steps: list[int], peaks: list[float]) -> float:
    """Copies a step: the slope of a line fitted from 2 steps on (before, the query pass peaks)."""
    pairs = [(k, p) for k, p in zip(steps, peaks, strict=True) if k >= 2]
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope


def measure(setting: Setting, steps: list[int], resident: bool) -> dict[str, Any]:
    copy = setting.copy_bytes()
    methods: dict[str, Any] = {}
    for method in METHODS:
        live = [live_peak(setting, method, k) / copy for k in steps]
        methods[method] = {
            "peak_copies": [round(p, 3) for p in live],
            "growth_copies_per_step": round(growth(steps, live), 4),
        }
        report = f"{method:>13}: {methods[method]['growth_copies_per_step']:.3f} copies a step"
        rss = [resident_peak(setting, method, k) for k in steps] if resident else [None]
        known = [r / copy for r in rss if r is not None]
        if len(known) == len(steps):
            methods[method]["resident_peak_copies"] = [round(r, 3) for r in known]
            methods[method]["resident_growth_copies_per_step"] = round(growth(steps, known), 4)
            report += f" (resident memory: {growth(steps, known):.3f})"
        print(f"{report}; {live[0]:.1f} at {steps[0]} and {live[-1]:.1f} at {steps[-1]} steps")
    return methods


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=Setting.layers)
    parser.add_argument("--width", type=int, default=Setting.width)
    parser.add_argument("--examples", type=int, default=Setting.examples)
    parser.add_argument("--tasks", type=int, default=Setting.tasks)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--no-resident", action="store_true", help="skip the fresh processes")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--png", type=Path, default=ROOT / "docs" / "figures" / "memory_growth.png")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(resident_point(*options.point))
        return
    torch.set_num_threads(options.threads)
    steps = sorted(set(options.steps))
    if steps[0] < 1 or sum(k >= 2 for k in steps) < 2:
        parser.error(f"--steps {steps}: give positive numbers, at least two of them above 1.")
    setting = Setting(
        options.layers, options.width, options.examples, options.tasks, device=options.device
    )
    differences = gradient_differences(setting, steps=3)
    print(f"relative distance from Unrolled's meta-gradient, float64, 3 steps: {differences}")
    if max(differences[m] for m in METHODS) > 1e-9 or differences["FirstOrder"] < 0.1:
        sys.exit("The meta-gradients differ, or hardly depend on second order: nothing measured.")
    result = {
        **about(options.device),
        "setting": asdict(setting),
        "parameters": setting.parameters(),
        "copy_bytes": setting.copy_bytes(),
        "gradient_differences": differences,
        "steps": steps,
        "methods": measure(setting, steps, not options.no_resident),
    }
    path = place(options.json, options.device, "memory_growth")
    save(path, result)
    plot(path, options.png, draw)


if __name__ == "__main__":
    main()
