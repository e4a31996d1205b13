"""What second order is worth: meta-training with each from the same start, on the same episodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Adam, Optimizer

from fastmaml.engine.derivatives.copying import deep_copy
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import FirstOrder
from fastmaml.maml import MAML
from fastmaml.measure.bench.configured import in_configuration
from fastmaml.measure.bench.failure_text import reason_of
from fastmaml.measure.bench.measure import SEED
from fastmaml.measure.profile.steps import needs_closure
from fastmaml.training.evaluation import Evaluation, evaluate

META_LR = 1e-3
"""Of Adam, where no optimizer is given."""


@dataclass(frozen=True)
class Learned:
    """What was learned with the exact meta-gradient, or with `FirstOrder`.

    Attributes:
        steps: inner steps, in training and evaluation.
        exact: which meta-gradient.
        iterations: meta-steps.
        evaluation: on held-out episodes; None where training failed.
        failure: how.
    """

    steps: int
    exact: bool
    iterations: int
    evaluation: Evaluation | None
    failure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The result as plain dicts and lists, for JSON."""
        return {
            "steps": self.steps,
            "gradient": "exact" if self.exact else "FirstOrder()",
            "iterations": self.iterations,
            "evaluation": self.evaluation and self.evaluation.as_dict(),
            **({"failure": self.failure} if self.failure else {}),
        }


@dataclass(frozen=True)
class Comparison:
    """How both meta-gradients are compared: how much is learned, from what, and how it is tested.

    Attributes:
        iterations: meta-steps of each learner.
        train: meta-batches, taken from one iterator.
        test: meta-batches of unseen tasks, the same for all.
        episodes: how many of its tasks.
        optimizer: whose class and settings are used; None for Adam.
    """

    iterations: int
    train: Iterator[Episodes]
    test: tuple[Episodes, ...]
    episodes: int
    optimizer: Optimizer | None

    def run(self, twin: MAML, steps: int) -> Iterator[Learned]:
        """Both learners in turn on each meta-batch, then their tests; what fails says how."""
        torch.manual_seed(SEED)
        learners = [_Learner(self, twin, steps, exact) for exact in (True, False)]
        for done in range(self.iterations):
            try:
                episodes = next(self.train, None)
            except Exception as error:
                why = f"drawing meta-batch {done + 1}: {reason_of(error)}"
            else:
                why = f"the episodes ended after {done} of {self.iterations} meta-batches"
                why *= episodes is None
            for learner in learners:
                learner.failure = learner.failure or why
                learner.attempt(f"iteration {done + 1}", learner.train, episodes)
            if why:
                break
        for learner in learners:
            learner.attempt("its test", learner.evaluate)
            yield Learned(steps, learner.exact, self.iterations, learner.found, learner.failure)


class _Learner:
    """One of the two learners, and how it failed, if it did."""

    def __init__(self, comparison: Comparison, twin: MAML, steps: int, exact: bool) -> None:
        self.comparison, self.steps, self.exact = comparison, steps, exact
        self.failure = ""
        self.found: Evaluation | None = None
        self.attempt("its beginning", self._begin, twin)

    def attempt(self, what: str, run: Callable[..., None], *arguments: Any) -> None:
        """Run a part, unless an earlier one failed; what fails is noted."""
        if not self.failure:
            try:
                run(*arguments)
            except Exception as error:
                self.failure = f"{what}: {reason_of(error)}"

    def train(self, episodes: Episodes) -> None:
        """One meta-step on `episodes`, and a step of the optimizer."""
        self.optimizer.zero_grad()
        self.maml(episodes).loss.backward()
        self.optimizer.step()

    def evaluate(self) -> None:
        """Its accuracy, or loss, on the held-out meta-batches."""
        comparison = self.comparison
        self.found = evaluate(self.maml, comparison.test, comparison.episodes, self.steps)

    def _begin(self, twin: MAML) -> None:
        own = deep_copy(twin)
        method = None if self.exact else FirstOrder()
        self.maml = in_configuration(own, method, self.steps, own.backend, own.executor)
        wanted = [p for p in self.maml.parameters() if p.requires_grad]
        self.optimizer = _like(self.comparison.optimizer, wanted)


def _like(optimizer: Optimizer | None, parameters: list[Any]) -> Optimizer:
    """An optimizer of the same class and settings, of other parameters."""
    if optimizer is None:
        return Adam(parameters, META_LR)
    kind = type(optimizer)
    known = inspect.signature(kind).parameters  # some keep defaults that they do not take
    settings = {k: v for k, v in optimizer.defaults.items() if k in known}
    made: Callable[..., Optimizer] = kind
    return made(parameters, **settings)


def comparison(
    iterations: int,
    train: Iterator[Episodes],
    test: Iterable[Episodes] | None,
    episodes: int,
    optimizer: Optimizer | None,
) -> Comparison:
    """A `Comparison` with the test's meta-batches taken, so that all learners meet the same.

    Raises:
        ValueError: there are none, or the optimizer's steps need a closure.
    """
    if optimizer is not None and needs_closure(optimizer):
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}, whose step() calls a closure again and "
            "again: give one that takes a step from the gradient at hand, such as Adam."
        )
    if test is None:
        raise ValueError(
            f"accuracy={iterations} needs test=: held-out episodes, an Episodes or an iterable of "
            "them."
        )
    batches = [test] if isinstance(test, Episodes) else []
    for batch in () if isinstance(test, Episodes) else test:
        batches.append(batch)
        if sum(map(len, batches)) >= episodes:
            break
    count = min(episodes, sum(map(len, batches)))
    if not count:
        raise ValueError("test= has no episodes.")
    return Comparison(iterations, train, tuple(batches), count, optimizer)
