"""How trained encoders adapt to data sets that they did not see, and how well."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fastmaml as fm
from benchmarks.support.split_encoder import Lower
from benchmarks.support.text_data import CLASSES, INTENTS, LENGTHS, METRICS, Data
from fastmaml.training.evaluation import evaluating
from fastmaml.training.measured import measure
from fastmaml.training.metrics import chosen

Scores = dict[str, dict[str, list[list[float]]]]
"""By data set and metric: of every draw, the values after 0, 1, ... steps."""


@dataclass(frozen=True)
class Adaptation:
    """How a trained encoder adapts to a new task.

    Attributes:
        steps: at most.
        rates: from which the best is taken.
        head: how the last layer begins.
        scope: what adapts.
        adam: whether by Adam, and not by gradient descent.
        whole: whether the frozen layers adapt, too.
        most_shots: examples a class at most; None for all.
    """

    steps: int
    rates: tuple[float, ...]
    head: str = "zero"
    scope: str = "head"
    adam: bool = False
    whole: bool = False
    most_shots: int | None = None


ADAPTATIONS = {
    "prototypes": Adaptation(0, (0.1,), head="prototype"),
    "new last layer": Adaptation(20, (0.1, 0.5)),
    "last layers": Adaptation(6, (0.05, 0.15), scope="all"),
    "all layers, Adam": Adaptation(
        10, (1e-4, 3e-4), scope="all", adam=True, whole=True, most_shots=4
    ),
}
BASE = ("prototypes", "new last layer", "last layers")


@dataclass(frozen=True)
class Draws:
    """How tasks are drawn for a test.

    Attributes:
        shots: the numbers of examples a class.
        draws: of support sets, of every data set held out.
        grid_draws: of every data set that was trained on, to choose rates and steps.
        test_query: rows of every query set, the same in all draws.
        test_queries: of every class, of intents.
        prototype_scale: of last layers that begin as prototypes.
    """

    shots: tuple[int, ...]
    draws: int
    grid_draws: int
    test_query: int
    test_queries: int
    prototype_scale: float


@dataclass(frozen=True)
class Test:
    """What adapts, how often, and what it is given.

    Attributes:
        features: of meta-batches, where the last layer alone adapts.
        whole: whether it takes texts, and not what the frozen layers make of them.
    """

    maml: fm.MAML
    steps: int
    features: Callable[[Any], Any] | None = None
    whole: bool = False


class AtLast:
    """What `measure` asks of a learner, after the last step alone: query sets cost the most."""

    def __init__(self, maml: fm.MAML) -> None:
        self.maml = maml

    def evaluate_each_step(self, batch: Any, steps: int) -> list[Any]:
        return [self.maml.evaluate(batch, steps)]


class Tests:
    """Everything that is the same for all encoders.

    Args:
        data: the data sets.
        lower: the frozen layers.
        whole: makes the whole model as it was pretrained.
        draws: how tasks are drawn.
        cells: the data sets held out.
    """

    def __init__(
        self, data: Data, lower: Lower, whole: Callable[[], Any], draws: Draws, cells: Sequence[str]
    ) -> None:
        self.data, self.lower, self.whole, self.draws, self.cells = data, lower, whole, draws, cells

    def head(self, name: str) -> fm.heads.Head:
        scale = self.draws.prototype_scale
        return fm.heads.Zero() if name == "zero" else fm.heads.Prototype(scale)

    def drawn(self, name: str, shots: int, draws: int, seed: int) -> Iterator[Any]:
        """One data set's tasks, that many, one a meta-batch."""
        s = self.draws
        if name in CLASSES:
            source = self.data.glue(
                [name], shots * CLASSES[name], s.test_query, query_from="dev", fixed_query=True,
                tasks=1, seed=seed,
            )  # fmt: skip
        else:
            source = self.data.intents(name, shots, s.test_queries, tasks=1, seed=seed)
        for _ in range(draws):
            found = source.sample()
            yield fm.episodes.NamedEpisodes(found.support, found.query, (name,))

    def scores(
        self, test: Test, cells: Any, shots: int, draws: int, seed: int, at_last: bool = False
    ) -> Scores:
        """Of the data sets, after every step, or the last one."""
        found: Scores = {}
        learner: Any = AtLast(test.maml) if at_last else test.maml
        for name in cells:
            choice = chosen({name: METRICS.get(name, "accuracy")})
            length = LENGTHS.get(name, 48 if name in CLASSES else LENGTHS[INTENTS])
            for batch in self.drawn(name, shots, draws, seed):
                given = batch if test.whole else self.lower(batch, length)
                given = given if test.features is None else test.features(given)
                with evaluating(test.maml):
                    (one,) = measure(learner, given, test.steps, choice)
                for metric, values in one.scores.items():
                    found.setdefault(name, {}).setdefault(metric, []).append(list(values))
        return found

    def test(self, model: Any, way: Adaptation, rate: float, steps: int) -> Test:
        """Where the last layer alone adapts, of the features, which are computed once."""
        rule = fm.rules.Adam(rate) if way.adam else fm.rules.SGD(rate)
        adapts = self.whole() if way.whole else model
        features = None
        if way.scope == "head":
            adapts, features = nn.Linear(model.classifier.in_features, 5), model.features
        maml = fm.MAML(
            adapts, rule=rule, steps=max(steps, 1), loss=fm.losses.classification,
            head=self.head(way.head), executor="eager",
        )  # fmt: skip
        return Test(maml, steps, features, way.whole)

    def best(self, model: Any, way: Adaptation, shots: int, cells: Any) -> tuple[float, float, int]:
        """The accuracy, rate and number of steps that are best on these data sets."""
        found = (-1.0, way.rates[0], way.steps)
        for rate in way.rates:
            test = self.test(model, way, rate, way.steps)
            draws = 1 if way.whole else self.draws.grid_draws
            curve = mean_accuracies(self.scores(test, cells, shots, draws, 998))
            found = max(found, *((a, rate, k) for k, a in enumerate(curve) if k or not way.steps))
        return found

    def tested(self, model: Any, name: str, cells: Any) -> dict[str, Any]:
        """An adaptation, tuned on the training data sets, on the data sets held out."""
        way, found = ADAPTATIONS[name], {}
        for shots in self.draws.shots:
            if way.most_shots is not None and shots > way.most_shots:
                continue
            accuracy, rate, steps = self.best(model, way, shots, cells)
            test = self.test(model, way, rate, steps)
            found[str(shots)] = self.row(test, shots, rate, accuracy)
            say(name, shots, found[str(shots)])
        return found

    def as_learned(self, maml: fm.MAML, cells: Any) -> dict[str, Any]:
        """The adaptation that was meta-learned, with the best number of steps."""
        found, most = {}, 2 * maml.steps
        maml.executor = "eager"  # many shapes come a few times
        for shots in self.draws.shots:
            tuned = self.scores(Test(maml, most), cells, shots, self.draws.grid_draws, 998)
            curve = mean_accuracies(tuned)
            steps = max(range(1, most + 1), key=curve.__getitem__)
            found[str(shots)] = self.row(Test(maml, steps), shots, "as learned", curve[steps])
            say("as meta-learned", shots, found[str(shots)])
        return found

    def row(self, test: Test, shots: int, rate: Any, tuned: float) -> dict[str, Any]:
        start = time.process_time()
        scores = self.scores(test, self.cells, shots, self.draws.draws, 999, at_last=True)
        seconds = (time.process_time() - start) / (len(self.cells) * self.draws.draws)
        return {
            "lr": rate, "steps": test.steps, "training_data_sets": round(tuned, 4),
            "cpu_seconds_a_task": round(seconds, 3), "scores": last(scores),
        }  # fmt: skip


def mean_accuracies(scores: Scores) -> list[float]:
    """After every step, over all draws of all data sets with classes."""
    tables = [torch.tensor(found["accuracy"]) for found in scores.values() if "accuracy" in found]
    return torch.stack([table.mean(0) for table in tables]).mean(0).tolist()


def last(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """After the last step alone."""
    return {
        name: {metric: [round(x[-1], 4) for x in draws] for metric, draws in of.items()}
        for name, of in scores.items()
    }


def say(name: str, shots: int, found: Mapping[str, Any]) -> None:
    means = [
        f"{cell} {100 * statistics.mean(of['accuracy' if 'accuracy' in of else 'pearson']):.1f}"
        for cell, of in found["scores"].items() if of
    ]  # fmt: skip
    print(
        f"  {name}, {shots} shots: {', '.join(means)} ({found['steps']} at {found['lr']})",
        flush=True,
    )
