"""What second order is worth: meta-training with each from the same start, on the same episodes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.optim import Adam, Optimizer

from fastmaml.episodes.batch import Episodes
from fastmaml.evaluation import Evaluation, evaluate
from fastmaml.gradients import FirstOrder
from fastmaml.maml import MAML
from fastmaml.sweeps.measure import SEED
from fastmaml.sweeps.reasons import reason_of
from fastmaml.sweeps.twins import in_configuration

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
        """Ready for JSON."""
        return {
            "steps": self.steps,
            "gradient": "exact" if self.exact else "FirstOrder()",
            "iterations": self.iterations,
            "evaluation": self.evaluation and self.evaluation.as_dict(),
            **({"failure": self.failure} if self.failure else {}),
        }


@dataclass(frozen=True)
class Lesson:
    """How much is learned, from what, and how it is tested.

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

    def learn(self, twin: MAML, steps: int) -> Iterator[Learned]:
        """Both learners in turn on each meta-batch, then their tests."""
        torch.manual_seed(SEED)
        learners = {exact: self._learner(twin, steps, exact) for exact in (True, False)}
        failures = dict.fromkeys(learners, "")
        done = 0
        for episodes in islice(self.train, self.iterations):
            for exact, (maml, optimizer) in learners.items():
                if not failures[exact]:
                    failures[exact] = _step(maml, optimizer, episodes, done)
            done += 1
        if done < self.iterations:
            short = f"the episodes ended after {done} of {self.iterations} meta-batches"
            failures = dict.fromkeys(learners, short)
        for exact, (maml, _) in learners.items():
            failure = failures[exact]
            found = None if failure else evaluate(maml, iter(self.test), self.episodes, steps)
            yield Learned(steps, exact, self.iterations, found, failure)

    def _learner(self, twin: MAML, steps: int, exact: bool) -> tuple[MAML, Optimizer]:
        method = None if exact else FirstOrder()
        own = copy.deepcopy(twin)
        maml = in_configuration(own, method, steps, own.backend, own.executor)
        wanted = [p for p in maml.parameters() if p.requires_grad]
        if self.optimizer is None:
            return maml, Adam(wanted, META_LR)
        kind = type(self.optimizer)
        known = inspect.signature(kind).parameters  # some keep defaults that they do not take
        settings = {k: v for k, v in self.optimizer.defaults.items() if k in known}
        made: Any = kind
        return maml, made(wanted, **settings)


def lesson(
    iterations: int,
    train: Iterator[Episodes],
    test: Iterable[Episodes] | None,
    episodes: int,
    optimizer: Optimizer | None,
) -> Lesson:
    """With the test's meta-batches taken, so that all learners meet the same.

    Raises:
        ValueError: there are none.
    """
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
    return Lesson(iterations, train, tuple(batches), count, optimizer)


def _step(maml: MAML, optimizer: Optimizer, episodes: Episodes, done: int) -> str:
    """One meta-step; how it failed."""
    optimizer.zero_grad()
    try:
        maml(episodes).loss.backward()
    except Exception as error:
        return f"iteration {done + 1}: {reason_of(error)}"
    optimizer.step()
    return ""
