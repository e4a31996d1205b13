"""What the studies of pretrained encoders share: meta-training, and results kept by method."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastmaml as fm
from benchmarks.support.results import about, folder
from fastmaml.training.intervals import half_width


@dataclass(frozen=True)
class Outer:
    """The outer loop: AdamW, a linear warm-up, then a cosine to zero; gradients are clipped.

    Attributes:
        rates_lr: of the inner loop's learned rates; None for `meta_lr`.
    """

    iterations: int
    meta_lr: float
    rates_lr: float | None = None
    warm_up: int = 20
    clip: float = 1.0


def meta_train(maml: fm.MAML, source: Iterable[Any], outer: Outer) -> dict[str, Any]:
    """Meta-train in place; how long it took, and the accuracy on training tasks meanwhile."""
    learned = [p for p in maml.parameters() if p.requires_grad]
    rates = list(maml.rates.parameters())
    weights = [p for p in learned if all(p is not rate for rate in rates)]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if rates:
        rates_lr = outer.meta_lr if outer.rates_lr is None else outer.rates_lr
        groups.append({"params": rates, "lr": rates_lr})
    optimizer = torch.optim.AdamW(groups, lr=outer.meta_lr, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / outer.warm_up, 1.0, outer.warm_up)
    rest = max(outer.iterations - outer.warm_up, 1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [outer.warm_up])
    start, curve = time.perf_counter(), []
    for i, episodes in zip(range(outer.iterations), source, strict=False):
        out = maml(episodes)
        out.loss.backward()
        nn.utils.clip_grad_norm_(learned, outer.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        curve.append(float(out.accuracy))  # type: ignore[arg-type]
        if i % 25 == 24:
            each = (time.perf_counter() - start) / (i + 1)
            recent = statistics.mean(curve[-25:])
            print(f"  iteration {i + 1}: accuracy {recent:.3f}, {each:.2f} s each", flush=True)
    blocks = [curve[i : i + 25] for i in range(0, len(curve), 25)]
    return {
        "training_seconds": round(time.perf_counter() - start, 1),
        "training_accuracy": [round(statistics.mean(block), 4) for block in blocks],
    }


def in_per_cent(values: Sequence[float]) -> list[float]:
    """The mean, and half the width of its 95% interval."""
    interval = half_width(statistics.stdev(values), len(values))
    return [round(100 * x, 2) for x in (statistics.mean(values), interval)]


def described(model: str) -> str:
    """Such as "bert, 6 layers of width 384"."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(model)
    return f"{found.model_type}, {found.num_hidden_layers} layers of width {found.hidden_size}"


def parser(text: str | None, setting: Any, methods: Iterable[str]) -> argparse.ArgumentParser:
    """With a flag for each of the setting's numbers."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", help="a folder, or a name on the Hugging Face hub")
    made.set_defaults(order=list(methods))
    made.add_argument("--device", default="cpu")
    made.add_argument("--methods", nargs="+", choices=list(methods), default=list(methods))
    made.add_argument("--json", type=Path, help="where the results go")
    for name, value in asdict(setting).items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return made


def run(
    options: argparse.Namespace,
    setting: Any,
    name: str,
    more: Mapping[str, Any],
    method: Callable[[str], dict[str, Any]],
    own: Sequence[str] = (),
) -> None:
    """Run the methods, and write the results after each.

    Methods that the file already holds for the same settings are kept, so an interrupted run goes
    on, and two processes may do some each. The settings named in `own` may differ from method to
    method: they stand in its row.
    """
    path = options.json or folder(torch.device(options.device).type) / name
    shared = {key: value for key, value in asdict(setting).items() if key not in own}
    of_row = {key: asdict(setting)[key] for key in own}

    def kept() -> dict[str, Any]:
        known = json.loads(path.read_text()) if path.exists() else {}
        found: dict[str, Any] = known.get("methods", {})
        return found if known.get("setting") == shared else {}

    for wanted in options.methods:
        known_row = kept().get(wanted)
        if known_row is not None and of_row.items() <= known_row.items():
            print(f"{wanted}: kept", flush=True)
            continue
        print(wanted, flush=True)
        row = of_row | method(wanted)
        rows = kept() | {wanted: row}  # read now: another process may have written meanwhile
        result = {
            **about(options.device),
            "model": described(options.model),
            **more,
            "setting": shared,
            "methods": {key: rows[key] for key in options.order if key in rows},
        }
        path.write_text(json.dumps(result, indent=1) + "\n")
