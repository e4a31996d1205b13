"""Adapting a pretrained encoder to unseen GLUE tasks: what does meta-training on others bring?

    python benchmarks/glue.py MODEL [--data FOLDER]

MODEL is a folder or a name on the Hugging Face hub. Meta-training is on SST-2, QNLI, MNLI and QQP;
the test adapts to MRPC, RTE and CoLA with 8 and 16 examples a class, several draws each, the same
for every method, and measures accuracy on development rows that are balanced over the classes.
Every task has a head of its own that begins at zero, or, for comparison, at random. Fine-tuning's
learning rate is the best of a grid on the training tasks.
Writes benchmarks/results/DEVICE/glue.json after every method; methods that it already holds for the
same settings are kept, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from results import about, folder
from torch import nn

import fastmaml as fm
from fastmaml.evaluation import NORMAL_95
from fastmaml.integrations.transformers import sequence_classifier, tokenizer

TRAIN = ("sst2", "qnli", "mnli", "qqp")
TEST = ("mrpc", "rte", "cola")
SHOTS = (8, 16)
RATES = (0.01, 0.03, 0.1)
ZERO = fm.heads.Zero()


@dataclass(frozen=True)
class Setting:
    """Meta-training and test."""

    iterations: int = 80
    tasks: int = 2
    support: int = 16
    query: int = 12
    inner_lr: float = 0.03
    inner_steps: int = 2
    meta_lr: float = 1e-5
    clip: float = 1.0
    seed: int = 0
    max_length: int = 48
    test_steps: int = 5
    test_query: int = 80
    draws: int = 10
    grid_draws: int = 2


@dataclass(frozen=True)
class Method:
    """How the encoder is meta-trained, if it is, and how a task's head begins."""

    gradient: fm.gradients.GradientMethod | None
    head: fm.heads.Head | None = ZERO


METHODS = {
    "Fine-tuning, random head": Method(None, None),
    "Fine-tuning, zero head": Method(None),
    "MAML": Method(fm.gradients.Checkpointed()),
    "FOMAML": Method(fm.gradients.FirstOrder()),
}


class Study:
    """The data, the model and the settings of all methods."""

    def __init__(self, options: argparse.Namespace, setting: Setting) -> None:
        self.options, self.setting = options, setting
        self.tokenizer = tokenizer(options.model)

    def episodes(
        self, names: Any, support: int, query: int, tasks: int, seed: int, dev: bool
    ) -> Any:
        return fm.episodes.glue(
            names, self.tokenizer, data=self.options.data, query_from="dev" if dev else "train",
            support=support, query=query, tasks=tasks, fixed_query=dev, seed=seed,
            max_length=self.setting.max_length, device=self.options.device,
        )  # fmt: skip

    def maml(self, method: Method, lr: float) -> fm.MAML:
        torch.manual_seed(self.setting.seed)
        model = sequence_classifier(self.options.model, 3, pooling="model", dropout=0.0)
        return fm.MAML(
            model.to(self.options.device), lr=lr, steps=self.setting.inner_steps,
            loss=fm.losses.classification, gradient=method.gradient, head=method.head,
        )  # fmt: skip

    def accuracies(
        self, maml: fm.MAML, name: str, support: int, draws: int, seed: int
    ) -> list[float]:
        """One for each draw of a support set, on the same query set."""
        source = iter(self.episodes(name, support, self.setting.test_query, 1, seed, dev=True))
        maml.eval()
        found = [
            maml.evaluate(next(source), self.setting.test_steps).accuracies for _ in range(draws)
        ]
        return [float(x) for x in found if x is not None]

    def best_rate(self, method: Method) -> float:
        """By the mean accuracy on training tasks."""
        scores = {}
        for lr in RATES:
            maml = self.maml(method, lr)
            drawn = [
                self.accuracies(maml, name, self.setting.support, self.setting.grid_draws, 998)
                for name in TRAIN
            ]
            scores[lr] = sum(map(sum, drawn)) / sum(map(len, drawn))
            print(f"  lr {lr}: {scores[lr]:.3f} on training tasks", flush=True)
        return max(scores, key=scores.__getitem__)

    def trained(self, method: Method) -> tuple[fm.MAML, dict[str, Any]]:
        """Meta-trained, and how long it took."""
        s = self.setting
        maml = self.maml(method, s.inner_lr)
        optimizer = torch.optim.AdamW(maml.parameters(), lr=s.meta_lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.iterations)
        source = iter(self.episodes(TRAIN, s.support, s.query, s.tasks, s.seed, dev=False))
        start, curve = time.perf_counter(), []
        for i in range(s.iterations):
            out = maml(next(source))
            out.loss.backward()
            nn.utils.clip_grad_norm_(maml.parameters(), s.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            curve.append(float(out.accuracy))  # type: ignore[arg-type]
            if i % 25 == 24:
                each = (time.perf_counter() - start) / (i + 1)
                recent = sum(curve[-25:]) / 25
                print(f"  iteration {i + 1}: accuracy {recent:.3f}, {each:.2f} s each", flush=True)
        return maml, {"training_seconds": round(time.perf_counter() - start, 1)}

    def run(self, method: Method) -> dict[str, Any]:
        """Everything about one method."""
        found: dict[str, Any] = {}
        if method.gradient is None:
            lr = self.best_rate(method)
            maml = self.maml(method, lr)
        else:
            lr = self.setting.inner_lr
            maml, found = self.trained(method)
        table = {}
        for name in TEST:
            for shots in SHOTS:
                values = self.accuracies(maml, name, 2 * shots, self.setting.draws, 999)
                spread = torch.tensor(values).std().item()
                numbers = (sum(values) / len(values), NORMAL_95 * spread / len(values) ** 0.5)
                table[f"{name}, {shots}"] = [round(100 * x, 2) for x in numbers]
                print(f"  {name}, {shots} a class: {table[f'{name}, {shots}']}", flush=True)
        return found | {"lr": lr, "steps": self.setting.test_steps, "accuracy": table}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or a name on the hub")
    parser.add_argument(
        "--data", help="folder with GLUE's files; default: FASTMAML_DATA or the hub"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path, help="where the results go")
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args()
    setting = Setting(**{name: getattr(options, name) for name in asdict(Setting())})
    path = options.json or folder(options.device) / "glue.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    kept = known.get("methods", {}) if known.get("setting") == asdict(setting) else {}
    study = Study(options, setting)
    for name in options.methods:
        print(name, flush=True)
        kept[name] = study.run(METHODS[name])
        result = {
            **about(options.device),
            "model": Path(options.model).name,
            "train": TRAIN,
            "setting": asdict(setting),
            "methods": kept,
        }
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
