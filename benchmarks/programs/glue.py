"""Adapting a pretrained encoder to unseen GLUE tasks: what does meta-training on others bring?

    python -m benchmarks.programs.glue MODEL [--data FOLDER]

MODEL is a folder or a name on the Hugging Face hub. Meta-training is on SST-2, QNLI, MNLI and QQP;
the test adapts to MRPC, RTE and CoLA with 8 and 16 examples a class, several draws each, the same
for every method, and measures accuracy on development rows that are balanced over the classes.
Every task has a head of its own that begins at zero, or, for comparison, at random. Fine-tuning's
learning rate is the best of a grid on the training tasks. Methods may differ in their numbers of
iterations and tasks and in their rates (ANIL's meta-step is the cheapest): they stand in the rows.
Writes benchmarks/results/DEVICE/glue.json after every method; methods that it already holds for the
same settings are kept, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

import fastmaml as fm
from benchmarks.support import studies
from fastmaml.integrations.transformers import sequence_classifier, tokenizer

TRAIN = ("sst2", "qnli", "mnli", "qqp")
TEST = ("mrpc", "rte", "cola")
SHOTS = (8, 16)
RATES = (0.03, 0.1, 0.3)
ZERO = fm.heads.Zero()


@dataclass(frozen=True)
class Setting:
    """Meta-training and test."""

    iterations: int = 60
    tasks: int = 2
    support: int = 16
    query: int = 12
    inner_lr: float = 0.1
    inner_steps: int = 3
    meta_lr: float = 2e-5
    seed: int = 0
    max_length: int = 48
    test_steps: int = 5
    test_query: int = 80
    draws: int = 10
    grid_draws: int = 2


@dataclass(frozen=True)
class Method:
    """How the encoder is meta-trained, if it is, how a task's head begins, and what adapts."""

    gradient: fm.gradients.GradientMethod | None
    head: fm.heads.Head | None = ZERO
    scope: str = "all"


METHODS = {
    "Fine-tuning, random head": Method(None, None),
    "Fine-tuning, zero head": Method(None),
    "MAML": Method(fm.gradients.Checkpointed()),
    "FOMAML": Method(fm.gradients.FirstOrder()),
    "ANIL": Method(fm.gradients.Unrolled(), scope="head"),
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
            scope=method.scope,
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
            scores[lr] = statistics.mean(x for one in drawn for x in one)
            print(f"  lr {lr}: {scores[lr]:.3f} on training tasks", flush=True)
        return max(scores, key=scores.__getitem__)

    def run(self, name: str) -> dict[str, Any]:
        """Everything about one method."""
        s, method = self.setting, METHODS[name]
        found: dict[str, Any] = {}
        lr = s.inner_lr if method.gradient is not None else self.best_rate(method)
        maml = self.maml(method, lr)
        if method.gradient is not None:
            source = self.episodes(TRAIN, s.support, s.query, s.tasks, s.seed, dev=False)
            found = studies.meta_train(maml, source, studies.Outer(s.iterations, s.meta_lr))
        table = {}
        for task in TEST:
            for shots in SHOTS:
                values = self.accuracies(maml, task, 2 * shots, self.setting.draws, 999)
                table[f"{task}, {shots}"] = studies.in_per_cent(values)
                print(f"  {task}, {shots} a class: {table[f'{task}, {shots}']}", flush=True)
        return found | {"lr": lr, "steps": s.test_steps, "accuracy": table}


def main() -> None:
    parser = studies.parser(__doc__, Setting(), METHODS)
    parser.add_argument(
        "--data", help="folder with GLUE's files; default: FASTMAML_DATA or the hub"
    )
    options = parser.parse_args()
    setting = Setting(**{name: getattr(options, name) for name in asdict(Setting())})
    own = ["iterations", "tasks", "meta_lr", "inner_lr"]
    studies.run(options, setting, "glue.json", {"train": TRAIN}, Study(options, setting).run, own)


if __name__ == "__main__":
    main()
