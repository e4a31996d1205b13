"""What is meta-training for, with texts? Encoders trained in several ways, on unseen data sets.

    python -m benchmarks.programs.transfer MODEL --data FOLDER [--methods ...]

MODEL is a folder or a name on the Hugging Face hub, of a BERT-like sentence encoder. FOLDER holds
GLUE's files in ``glue``, ``clinc150.jsonl.gz`` and ``banking77.jsonl.gz``. The encoder's last
layers are trained, the others stay as they are: by meta-learning, by plain training on the same
data sets together (the control), or not at all; on four data sets of GLUE, or on these and intents.
The test adapts to data sets that none of them saw, from few examples a class, by prototypes, by
training a new last layer, or by training the last layers too; for every draw the same examples for
all. The rate and the number of steps of an adaptation are the best on the data sets that were
trained on (of an encoder that was not trained: GLUE's and intents), by the number of examples, and
so is the outer rate. Writes benchmarks/results/DEVICE/transfer.json after every method, with every
draw; methods that it already holds for the same settings are kept.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastmaml as fm
from benchmarks.support import studies
from benchmarks.support.adaptations import ADAPTATIONS, BASE, Draws, Tests
from benchmarks.support.multi_task import multi_task
from benchmarks.support.split_encoder import Lower, Upper
from benchmarks.support.text_data import (
    CLASSES,
    HELD_OUT,
    INTENTS,
    LENGTHS,
    OTHER_INTENTS,
    TRAIN,
    Data,
)
from fastmaml.integrations.transformers import sequence_classifier, tokenizer

SHOTS = (4, 16)
CELLS = (*HELD_OUT, "held", OTHER_INTENTS)


@dataclass(frozen=True)
class Setting:
    """Meta-training and test."""

    frozen_layers: int = 0
    iterations: int = 400
    tasks: int = 2
    support: int = 16
    query: int = 12
    shots: int = 4
    queries: int = 3
    inner_steps: int = 3
    prototype_scale: float = 0.1
    rows: int = 4000
    draws: int = 10
    grid_draws: int = 3
    test_query: int = 64
    test_queries: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """How the encoder's last layers are trained, if they are.

    Attributes:
        intents: whether on intents, too, every other meta-batch.
        by: "nothing", "multi-task", or a scope of meta-learning: "head", "all".
        head: of the inner loop.
        rates_lr: of the inner loop's learned rates, by layer and step; None for one fixed rate.
        meta_lr: the outer rates of which the best on the training data sets is taken.
        iterations: None for the setting's.
        tests: adaptations; those that are meta-learned come first by themselves.
        halfway: whether the weights halfway to the pretrained ones are tested, too.
    """

    intents: bool
    by: str
    head: str = "zero"
    rates_lr: float | None = None
    meta_lr: tuple[float, ...] = (1e-4,)
    iterations: int | None = None
    tests: tuple[str, ...] = BASE[:2]
    halfway: bool = False


METHODS = {
    "pretrained": Method(True, "nothing"),
    "fine-tuning": Method(True, "nothing", tests=("all layers, Adam",)),
    "multi-task, GLUE": Method(False, "multi-task"),
    "ANIL, GLUE": Method(False, "head"),
    "multi-task": Method(True, "multi-task", halfway=True),
    "ANIL": Method(True, "head", halfway=True),
    "ANIL from prototypes": Method(True, "head", "prototype", halfway=True),
    "MAML": Method(True, "all", rates_lr=0.01, iterations=200, halfway=True),
}


class Study:
    """The data, the model and the settings of all methods."""

    def __init__(self, options: argparse.Namespace, setting: Setting, work: Path) -> None:
        self.options, self.setting = options, setting
        words = tokenizer(options.model)
        self.data = Data(options.data, work, words, setting.rows, options.held_intents)
        self.lower = Lower(options.model, setting.frozen_layers)
        s = setting
        draws = Draws(SHOTS, s.draws, s.grid_draws, s.test_query, s.test_queries, s.prototype_scale)
        self.tests = Tests(self.data, self.lower, self.whole, draws, CELLS)

    def whole(self) -> Any:
        torch.manual_seed(self.setting.seed)
        return sequence_classifier(self.options.model, 5, pooling="mean", dropout=0.0)

    def model(self) -> Upper:
        return Upper(self.whole(), self.setting.frozen_layers)

    def trained(self, method: Method, meta_lr: float) -> tuple[Any, fm.MAML | None, dict[str, Any]]:
        """The last layers, what meta-learned them, and what it took."""
        s, model = self.setting, self.model()
        iterations = method.iterations or s.iterations
        if method.by == "nothing":
            return model, None, {}
        about: dict[str, Any] = {"iterations": iterations, "meta_lr": meta_lr}
        if method.by == "multi-task":
            rows = s.support + s.query
            sources = [self.data.whole(rows, s.tasks, False, s.seed)]
            sources += [self.data.whole(rows, s.tasks, True, s.seed)] if method.intents else []
            counts = {name: CLASSES[name] for name in TRAIN} | {INTENTS: self.data.intents_learned}
            found = multi_task(model, self.raised(sources), counts, iterations, meta_lr)
            return model, None, about | found
        rule = fm.rules.SGD(0.1) if method.rates_lr is None else fm.rules.LSLR(0.1)
        maml = fm.MAML(
            model, rule=rule, steps=s.inner_steps, loss=fm.losses.classification,
            scope=method.by, head=self.tests.head(method.head),
        )  # fmt: skip
        sources = [self.data.glue(TRAIN, s.support, s.query, tasks=s.tasks, seed=s.seed)]
        if method.intents:
            sources.append(
                self.data.intents(INTENTS, s.shots, s.queries, tasks=s.tasks, seed=s.seed)
            )
        start = time.process_time()
        outer = studies.Outer(iterations, meta_lr, method.rates_lr)
        found = studies.meta_train(maml, self.raised(sources), outer)
        seconds = round(time.process_time() - start, 1)
        return model, maml, about | found | {"training_cpu_seconds": seconds}

    def raised(self, sources: list[Any]) -> Iterator[Any]:
        """Meta-batches of the sources in turn, through the frozen layers."""
        lengths = [48, LENGTHS[INTENTS]]
        while True:
            for source, length in zip(sources, lengths, strict=False):
                yield self.lower(source.sample(), length)

    def run(self, name: str) -> dict[str, Any]:
        """Everything about one method."""
        method = METHODS[name]
        best: tuple[float, Any] = (-1.0, None)
        tried = {}
        cells = (*TRAIN, INTENTS) if method.intents else TRAIN
        for meta_lr in method.meta_lr if method.by != "nothing" else (0.0,):
            model, maml, about = self.trained(method, meta_lr)
            score = self.tests.best(model, ADAPTATIONS["new last layer"], SHOTS[0], cells)[0]
            tried[str(meta_lr)] = round(score, 4)
            print(f"  outer rate {meta_lr}: {score:.3f} on training data sets, {about}", flush=True)
            if score > best[0]:
                best = score, (model, maml, about)
        model, maml, about = best[1]
        rows = {} if maml is None else {"as meta-learned": self.tests.as_learned(maml, cells)}
        rows |= {test: self.tests.tested(model, test, cells) for test in method.tests}
        if method.halfway:
            between = halfway(model, self.model())
            rows |= {
                f"halfway, {test}": self.tests.tested(between, test, cells) for test in BASE[:2]
            }
        return {"intents": method.intents, **about, "outer_rates": tried, "tests": rows}


def halfway(model: nn.Module, start: nn.Module) -> nn.Module:
    """Between two models' weights (Wortsman et al., 2022: robust fine-tuning)."""
    found, other = copy.deepcopy(model), dict(start.named_parameters())
    with torch.no_grad():
        for name, p in found.named_parameters():
            p.lerp_(other[name], 0.5)
    return found


def main() -> None:
    parser = studies.parser(__doc__, Setting(), METHODS)
    parser.add_argument("--data", type=Path, required=True, help="folder with the files")
    parser.add_argument("--held-intents", type=int, default=50, help="of CLINC150, for the test")
    options = parser.parse_args()
    setting = Setting(**{name: getattr(options, name) for name in asdict(Setting())})
    more = {"train": TRAIN, "held_out": CELLS, "shots": SHOTS}
    with tempfile.TemporaryDirectory() as work:
        study = Study(options, setting, Path(work))
        name = "transfer_last.json" if setting.frozen_layers else "transfer.json"
        studies.run(options, setting, name, more, study.run)


if __name__ == "__main__":
    main()
