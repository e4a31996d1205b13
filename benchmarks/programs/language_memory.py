"""Memory and time of a second-order meta-step of a pretrained BERT against the inner steps.

    python -m benchmarks.programs.language_memory MODEL [--steps 1 2 5 10 20]

MODEL is a folder or a name on the Hugging Face hub. Contestants: the loop that keeps the graph of
every inner step (``create_graph=True``), and fastmaml. One task, 16 texts of 128 tokens as support
and as query. Every point is a process of its own: its peak resident memory over what it held
before the first meta-step, of the first call (which records) and of later ones, the seconds of
those, and the peak of live tensor bytes of one more. Meta-gradients are compared first, in float64
and on fewer tokens.
Writes benchmarks/results/DEVICE/language_memory.json and docs/figures/language_memory.png;
contestants that are not asked for keep what the file holds of them for the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from benchmarks.support.results import ROOT, about, folder
from fastmaml.integrations.transformers import Lora, lora, sequence_classifier
from fastmaml.measure.profile import LiveMemory

STEPS = (1, 2, 5, 10, 20)
LR, CLASSES = 0.01, 3
FAST: dict[str, dict[str, Any]] = {
    "fastmaml": {},
    "fastmaml, layers checkpointed": {},
}
LOOPS = ("loop", "loop, LoRA")
CONTESTANTS = (*LOOPS, *FAST, "fastmaml, LoRA")
MOST_BYTES = 0.85
"""A point that is expected to need more than this share of the machine's memory is left out."""


def episodes(texts: int, length: int, device: str) -> fm.Episodes:
    """Random tokens, the last fifth of every text padding."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        tokens = torch.randint(1000, 20_000, (1, texts, length), generator=generator)
        mask = torch.ones_like(tokens)
        mask[..., -length // 5 :] = 0
        labels = torch.randint(CLASSES, (1, texts), generator=generator)
        parts.append(fm.Batch({"input_ids": tokens * mask, "attention_mask": mask}, labels))
    return fm.Episodes(*parts).to(device)


def contestant(name: str, model: nn.Module, batch: fm.Episodes, steps: int) -> Callable[[], None]:
    """A meta-step, which leaves the meta-gradient in ``.grad``."""
    if name in LOOPS:
        return lambda: by_hand(name, model, batch, steps)
    if "checkpointed" in name:
        model.train()  # transformers checkpoints layers in this mode only; there is no dropout
        name = "activation_checkpointing_enable"  # transformers' newer name of it
        getattr(model, name, getattr(model, "gradient_checkpointing_enable", None))()
    maml = fm.MAML(
        model, lr=LR, steps=steps, loss=fm.losses.classification,
        scope=lora(model) if "LoRA" in name else "all", gradient=fm.gradients.Checkpointed(),
        executor="captured", **FAST.get(name, {}), spot_checks=False,
    )  # fmt: skip
    return lambda: maml(batch).loss.backward()


def by_hand(name: str, model: nn.Module, batch: fm.Episodes, steps: int) -> None:
    """The loop that everybody writes: torch.autograd.grad with create_graph, then backward."""
    support, query = (b.map(lambda x: x[0]) for b in (batch.support, batch.query))
    theta: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    chosen = lora(model) if "LoRA" in name else None
    adapts = [n for n, p in model.named_parameters() if n in theta and (not chosen or chosen(n, p))]
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(steps):
            logits = functional_call(model, theta, (), support.inputs)
            loss = fm.losses.classification(logits, support.targets)
            found = torch.autograd.grad(loss, [theta[n] for n in adapts], create_graph=True)
            theta = {**theta, **{n: theta[n] - LR * g for n, g in zip(adapts, found, strict=True)}}
        logits = functional_call(model, theta, (), query.inputs)
        fm.losses.classification(logits, query.targets).backward()


def pretrained(path: str, name: str, device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    adapters = Lora() if "LoRA" in name else None
    return sequence_classifier(path, CLASSES, dropout=0.0, lora=adapters).to(device, dtype).eval()


def gradient_differences(path: str, device: str) -> dict[str, float]:
    """Relative to the loop, in float64."""
    found: dict[str, Tensor] = {}
    for name in CONTESTANTS:
        model = pretrained(path, name, device, torch.float64)
        contestant(name, model, episodes(2, 24, device), 3)()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found[name] = torch.cat(grads)
    return {
        name: float((g - found[loop]).norm() / found[loop].norm())
        for name, g in found.items()
        for loop in LOOPS
        if ("LoRA" in name) == ("LoRA" in loop)
    }


def point(path: str, name: str, steps: int, texts: int, length: int, device: str) -> dict[str, Any]:
    """What the process of one point measures."""
    model = pretrained(path, name, device, torch.float32)
    batch = episodes(texts, length, device)
    small = pretrained(path, name, device, torch.float32)
    contestant(name, small, episodes(1, 8, device), 1)()  # loads what torch loads late
    del small
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None  # the outer loop's own
    run = contestant(name, model, batch, steps)
    before = memory("VmRSS", device)
    forget_peak(device)
    times, peaks = [], []
    for _ in range(2):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        peaks.append(memory("VmHWM", device) - before)
        forget_peak(device)
    with LiveMemory() as live:
        run()
    return {
        "first_seconds": times[0],
        "seconds": min(times[1:]),
        "first_peak_bytes": peaks[0],
        "peak_bytes": max(peaks[1:]),
        "live_peak_bytes": live.peak_bytes,
    }


def memory(field: str, device: str) -> int:
    """Bytes of this process: VmRSS is now, VmHWM the peak."""
    if device == "cuda":
        now, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return now if field == "VmRSS" else most
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field} line: this needs Linux.")
    return 1024 * int(found[1])


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measured(options: argparse.Namespace, name: str, steps: int) -> dict[str, Any]:
    """One point, in a fresh process."""
    command = [
        sys.executable, "-m", "benchmarks.programs.language_memory", options.model,
        "--device", options.device, "--texts", str(options.texts), "--length", str(options.length),
        "--point", name, str(steps),
    ]  # fmt: skip
    # Freed tensors go back to the system at once, so that the peak is that of live memory.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:] or f"exit {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(points: dict[str, Any], key: str) -> float | None:
    """Bytes a step: the slope of a line from 2 steps on."""
    pairs = [(int(k), p[key]) for k, p in points.items() if int(k) >= 2 and key in p]
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope if len(pairs) > 1 else None


def expected(points: dict[str, Any], steps: int) -> float:
    """The peak of a point to come, from those before it."""
    known = [(int(k), p["peak_bytes"]) for k, p in points.items() if "peak_bytes" in p]
    if len(known) < 2:
        return 0.0
    line = statistics.linear_regression(*zip(*known[-2:], strict=True))
    return line.slope * steps + line.intercept


def all_points(options: argparse.Namespace, copies: dict[str, int]) -> dict[str, Any]:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found: dict[str, Any] = {}
    for name in options.contestants:
        points: dict[str, Any] = {}
        for steps in options.steps:
            if options.device == "cpu" and expected(points, steps) > MOST_BYTES * whole:
                points[str(steps)] = {"error": "left out: it would not fit this machine's memory"}
                continue
            points[str(steps)] = measured(options, name, steps)
            print(name, steps, points[str(steps)], flush=True)
        slopes = {key: growth(points, f"{key}peak_bytes") for key in ("", "live_")}
        found[name] = {
            **about(options.device),
            "points": points,
            "copy_bytes": copies[name],
            **{
                f"{key}growth_copies_per_step": slope if slope is None else slope / copies[name]
                for key, slope in slopes.items()
            },
        }
    return found


def adapted_bytes(path: str, name: str) -> int:
    model = pretrained(path, name, "cpu", torch.float32)
    chosen = lora(model) if "LoRA" in name else None
    named = model.named_parameters()
    return sum(4 * p.numel() for n, p in named if p.requires_grad and (not chosen or chosen(n, p)))


def plot(result: dict[str, Any], path: Path) -> None:
    """Peak memory and time against the inner steps."""
    try:
        import matplotlib
    except ImportError:
        print(f'{path} not drawn: it needs matplotlib (pip install "fastmaml[plot]").')
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, found in result["contestants"].items():
        points = {int(k): p for k, p in found["points"].items() if "peak_bytes" in p}
        style = "--" if name in LOOPS else "-"
        for axes, key, unit in ((left, "peak_bytes", 2**30), (right, "seconds", 1)):
            values = [p[key] / unit for p in points.values()]
            axes.plot(list(points), values, style, label=name, marker=".")
    left.set(xlabel="inner steps", ylabel="peak memory of a meta-step, GiB", ylim=(0, None))
    right.set(xlabel="inner steps", ylabel="seconds a meta-step", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, None)
    figure.suptitle(
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['texts']} texts of "
        f"{result['length']} tokens, one task, second order"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or a name on the hub")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--json", type=Path, help="where the results go")
    figure = ROOT / "docs" / "figures" / "language_memory.png"
    parser.add_argument("--png", type=Path, default=figure)
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.point:
        print(json.dumps(point(o.model, o.point[0], int(o.point[1]), o.texts, o.length, o.device)))
        return
    differences = gradient_differences(o.model, o.device)
    print(f"relative distance from the loop's meta-gradient, float64, 3 steps: {differences}")
    if max(differences.values()) > 1e-9:
        sys.exit("The meta-gradients differ: nothing measured.")
    copies = {name: adapted_bytes(o.model, name) for name in o.contestants}
    whole = pretrained(o.model, "", "cpu", torch.float32)
    setting = {
        "model": Path(o.model).name,
        "parameters": sum(p.numel() for p in whole.parameters()),
        "texts": o.texts,
        "length": o.length,
        "steps": list(o.steps),
    }
    path = o.json or folder(o.device) / "language_memory.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    kept = known.get("contestants", {}) if setting.items() <= known.items() else {}
    result = {
        **about(o.device),
        **setting,
        "gradient_differences": {**known.get("gradient_differences", {}), **differences},
        "contestants": {**kept, **all_points(o, copies)},
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, o.png)


if __name__ == "__main__":
    main()
