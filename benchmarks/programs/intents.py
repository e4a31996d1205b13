"""Few-shot intent classification with a pretrained encoder: what does meta-training bring?

    python -m benchmarks.programs.intents MODEL --data clinc150.jsonl.gz \\
        --test-data banking77.jsonl.gz [--pooling model --head own]

With the last two options the model is a plain BERT classifier.
MODEL is a folder or a name on the Hugging Face hub. Meta-training is on 100 classes of --data,
5-way 1-shot; the test is on the 50 others and on all of --test-data, 5-way 1-shot and 5-shot, the
same episodes for every method. Fine-tuning and prototypes start from the pretrained weights;
fine-tuning's learning rate and number of steps are the best of a grid on training classes, the
meta-learners' are not searched for.
Writes benchmarks/results/DEVICE/intents.json (with --pooling model, intents_pooler.json) after
every method; methods that it already holds for
the same settings are kept, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastmaml as fm
from benchmarks.support import studies
from benchmarks.support.multi_task import multi_task
from fastmaml.episodes.held_out import held_out
from fastmaml.episodes.tables import read_table
from fastmaml.integrations.transformers import sequence_classifier, tokenizer

WAYS = 5
RATES = (0.03, 0.1, 0.3)
FINE_TUNED_STEPS = (1, 2, 3, 5)  # ten and twenty gained nothing


@dataclass(frozen=True)
class Setting:
    """Meta-training and test.

    Attributes:
        pooling: "mean" of the tokens, as the encoder was pretrained, or the "model"'s own pooler.
        head: how a task's last layer begins: "zero", or the model's "own", which is meta-learned.
    """

    iterations: int = 100
    tasks: int = 4
    queries: int = 3
    inner_lr: float = 0.1
    inner_steps: int = 3
    test_steps: int = 3
    meta_lr: float = 2e-5
    seed: int = 0
    test_classes: int = 50
    test_queries: int = 3
    test_episodes: int = 200
    grid_episodes: int = 40
    max_length: int = 24
    pooling: str = "mean"
    head: str = "zero"


@dataclass(frozen=True)
class Method:
    """How the encoder is meta-trained, if it is, and what adapts.

    Attributes:
        gradient: None for no meta-training.
        scope: what adapts.
        head: how the last layer of a task begins; None for the setting's.
        steps: inner steps of the test; None for the setting's, or fine-tuning's best.
        shots: of meta-training; Reptile, which has no query set, takes what others have in both.
        meta_lr: None for the setting's.
        rates_lr: of the inner loop's rates, learned by layer and step; None for one fixed rate.
        multi_task: whether the encoder first learns to tell all training classes apart, plainly,
            from as many texts as the meta-learners see.
    """

    gradient: fm.gradients.GradientMethod | None
    scope: str = "all"
    head: fm.heads.Head | None = None
    steps: int | None = None
    shots: int = 1
    meta_lr: float | None = None
    rates_lr: float | None = None
    multi_task: bool = False


METHODS = {
    "Prototypes": Method(None, head=fm.heads.Prototype(), steps=0),
    "Fine-tuning": Method(None),
    "Multi-task, then fine-tuning": Method(None, multi_task=True),
    "Multi-task, then prototypes": Method(
        None, multi_task=True, head=fm.heads.Prototype(), steps=0
    ),
    "MAML": Method(fm.gradients.Checkpointed()),
    "MAML, learned rates": Method(
        fm.gradients.Checkpointed(), steps=3, meta_lr=3e-6, rates_lr=0.01
    ),
    "FOMAML": Method(fm.gradients.FirstOrder()),
    "ANIL": Method(fm.gradients.Checkpointed(), scope="head"),
    "Reptile": Method(fm.gradients.Reptile(), shots=4),
}


class Study:
    """The data, the model and the settings of all methods."""

    def __init__(self, options: argparse.Namespace, setting: Setting) -> None:
        self.options, self.setting = options, setting
        self.tokenizer = tokenizer(options.model)

    def model(self) -> nn.Module:
        torch.manual_seed(self.setting.seed)
        found = sequence_classifier(
            self.options.model, WAYS, pooling=self.setting.pooling, dropout=0.0
        )
        return found.to(self.options.device)

    def episodes(self, data: str, split: str, shots: int, queries: int, seed: int) -> Any:
        held = self.setting.test_classes if data == self.options.data else 0
        return fm.episodes.text(
            data, self.tokenizer, WAYS, shots, queries, self.setting.tasks, split,
            test_classes=held, leave_out=["oos"], max_length=self.setting.max_length, seed=seed,
            device=self.options.device,
        )  # fmt: skip

    def all_classes(self, rows: int) -> tuple[fm.episodes.Mixture, int]:
        """Batches of texts of all training classes, as support sets, and how many classes."""
        from datasets import Dataset

        table = read_table(self.options.data)
        names = sorted({str(label) for label in table.labels} - {"oos"})
        train = set(held_out(names, 0, self.setting.test_classes, 0)["train"])
        kept = [(t, y) for t, y in zip(table.texts, table.labels, strict=True) if y in train]
        columns = dict(zip(("text", "label"), map(list, zip(*kept, strict=True)), strict=True))
        task = fm.episodes.text_task(
            "intents", Dataset.from_dict(columns), self.tokenizer, cache=False,
            max_length=self.setting.max_length,
        )  # fmt: skip
        source = fm.episodes.Mixture(
            [task], support=rows, query=1, tasks=1, seed=self.setting.seed, balance="none"
        )
        return source, len(train)

    def maml(self, method: Method, lr: float, model: nn.Module | None = None) -> fm.MAML:
        rule = fm.rules.SGD(lr) if method.rates_lr is None else fm.rules.LSLR(lr)
        head = method.head or (fm.heads.Zero() if self.setting.head == "zero" else None)
        return fm.MAML(
            self.model() if model is None else model, rule=rule,
            steps=self.setting.inner_steps, loss=fm.losses.classification,
            gradient=method.gradient, scope=method.scope, head=head,
        )  # fmt: skip

    def test(self, maml: fm.MAML, steps: int) -> dict[str, Any]:
        """Accuracy in per cent, and half the width of its 95% interval."""
        s, found = self.setting, {}
        for name, data, split in (
            ("held-out intents", self.options.data, "test"),
            ("other data", self.options.test_data, "train"),
        ):
            for shots in (1, 5):
                source = self.episodes(data, split, shots, s.test_queries, seed=999)
                values = self.accuracies(maml, source, s.test_episodes, [steps])[0]
                key = f"{name}, {shots}-shot"
                found[key] = studies.in_per_cent(values)
                print(f"  {key}: {found[key][0]} ± {found[key][1]}", flush=True)
        return found

    @staticmethod
    def accuracies(
        maml: fm.MAML, source: Any, episodes: int, steps: Sequence[int]
    ) -> list[list[float]]:
        """Of every episode, after each of these numbers of steps; the same episodes for all."""
        maml.eval()
        found: list[list[float]] = [[] for _ in steps]
        for batch in source:
            curve = maml.evaluate_each_step(batch, steps[-1]) if len(steps) > 1 else None
            for one, count in zip(found, steps, strict=True):
                out = maml.evaluate(batch, count) if curve is None else curve[count]
                one += out.accuracies.tolist()  # type: ignore[union-attr]
            if len(found[0]) >= episodes:
                return [one[:episodes] for one in found]
        raise AssertionError("sources do not end")

    def multi_task(self) -> tuple[nn.Module, dict[str, Any]]:
        """The control: a model that learned its training classes plainly, and what that took."""
        s, model = self.setting, self.model()
        rows = s.tasks * WAYS * (1 + s.queries)
        source, classes = self.all_classes(rows)
        found = multi_task(model, source, {"intents": classes}, s.iterations, s.meta_lr)
        return model, {"iterations": s.iterations, "meta_lr": s.meta_lr} | found

    def fine_tuned(self, method: Method, model: nn.Module | None) -> tuple[float, int]:
        """The best learning rate and number of steps on training classes."""
        best = (0.0, RATES[0], 1)
        for lr in RATES:
            maml = self.maml(method, lr, model)
            source = self.episodes(self.options.data, "train", 1, self.setting.test_queries, 998)
            drawn = self.accuracies(maml, source, self.setting.grid_episodes, FINE_TUNED_STEPS)
            found = [sum(one) / len(one) for one in drawn]
            best = max(best, *((a, lr, k) for a, k in zip(found, FINE_TUNED_STEPS, strict=True)))
            print(f"  lr {lr}: " + " ".join(f"{100 * a:.1f}" for a in found), flush=True)
        return best[1:]

    def run(self, name: str) -> dict[str, Any]:
        """Everything about one method."""
        s, method = self.setting, METHODS[name]
        found: dict[str, Any] = {}
        lr, steps = s.inner_lr, s.test_steps if method.steps is None else method.steps
        model = None
        if method.multi_task:
            model, found = self.multi_task()
        if method.gradient is None and method.steps is None:
            lr, steps = self.fine_tuned(method, model)
        maml = self.maml(method, lr, model)
        if method.gradient is not None:
            source = self.episodes(self.options.data, "train", method.shots, s.queries, s.seed)
            meta_lr = s.meta_lr if method.meta_lr is None else method.meta_lr
            outer = studies.Outer(s.iterations, meta_lr, method.rates_lr)
            found = asdict(outer) | studies.meta_train(maml, source, outer)
        return found | {"lr": lr, "steps": steps, "accuracy": self.test(maml, steps)}


def main() -> None:
    parser = studies.parser(__doc__, Setting(), METHODS)
    parser.add_argument("--data", required=True, help="texts with intents: a file or a hub name")
    parser.add_argument("--test-data", required=True, help="texts of another domain")
    options = parser.parse_args()
    setting = Setting(**{name: getattr(options, name) for name in asdict(Setting())})
    names = {key: Path(getattr(options, key)).name.split(".")[0] for key in ("data", "test_data")}
    run = Study(options, setting).run
    name = "intents.json" if setting.pooling == "mean" else "intents_pooler.json"
    studies.run(options, setting, name, names, run, own=["test_episodes"])


if __name__ == "__main__":
    main()
