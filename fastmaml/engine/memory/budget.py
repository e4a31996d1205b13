"""A program and how much memory it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from fastmaml.engine.base.attempt import attempted
from fastmaml.engine.memory.estimate import Estimator
from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.engine.memory.measurement import Measurement
from fastmaml.engine.step.program import Program
from fastmaml.gradients import GradientMethod


@dataclass(frozen=True)
class Candidate:
    """A program whose memory is known.

    Attributes:
        asked: the estimator for ways to run that can be recorded.
        estimator: by which it is known; without lanes where it cannot be.
        program: with its gradient method and chunk.
        kept: what autograd keeps of an inner step and of the query pass.
        law: how its peak grows.
        first: the same of its first call, which records it.
        doubt: why the law is only a guess; empty if one of its kind was watched.
    """

    asked: Estimator
    estimator: Estimator
    program: Program
    kept: tuple[int, int]
    law: MemoryLaw
    first: MemoryLaw
    doubt: str

    @classmethod
    def of(
        cls,
        estimator: Estimator,
        program: Program,
        kept: tuple[int, int],
        found: Measurement | None,
        watch: bool = True,
    ) -> Candidate:
        """Watch a small one of its kind, if that was not done before and is worth it."""
        doubt = "" if watch else "too little hangs on it to run one"
        if found is None and watch:
            doubt, found = attempted(partial(estimator.sample, program, program.chunk))
        if found is None:
            law = estimator.guess(kept, program)
            return cls(estimator, estimator, program, kept, law, law, doubt)
        known = estimator if found.eagerly else replace(estimator, lanes=0)
        law = known.law(found, program.method, program.chunk)
        return cls(estimator, known, program, kept, law, known.first_law(found, program), "")

    def under(self, method: GradientMethod) -> Candidate:
        """With this gradient method."""
        if method == self.program.method:
            return self
        program = replace(self.program, method=method)
        return Candidate.of(self.asked, program, self.kept, None)

    def within(self, budget: int) -> Candidate:
        """With chunks so small that the first call is within the budget too, or of one task."""
        if self.peak_first <= budget or self.program.chunk == 1:
            return self
        steps, tasks = self.estimator.steps, self.estimator.tasks
        at_once = self.law.largest_tasks(budget, steps) or 0
        alone = self.first.largest_tasks(budget, steps) or 0
        most = min(at_once // max(self.estimator.lanes, 1), alone)
        most = max(1, min(most, self.program.chunk - 1))
        size = math.ceil(tasks / math.ceil(tasks / most))  # all chunks about alike
        program = replace(self.program, chunk=size)
        return Candidate.of(self.asked, program, self.kept, None).within(budget)

    @property
    def peak(self) -> int:
        """The estimated peak of a meta-step, in bytes."""
        return self.law.peak(self.estimator.at_once(self.program.chunk), self.estimator.steps)

    @property
    def peak_first(self) -> int:
        """Bytes of the first call."""
        return max(self.peak, self.first.peak(self.program.chunk, self.estimator.steps))

    def about(self) -> str:
        """A line about the memory, for `Plan.reasons`."""
        tasks = self.estimator.at_once(self.program.chunk)
        each = self.law.peak(tasks, self.estimator.steps + 1) - self.peak
        return (
            f"memory: about {mib(self.peak)} at K={self.estimator.steps}, {tasks} task"
            f"{'s' * (tasks > 1)} at a time; grows by {mib(each)} a step"
            + f"; {mib(self.peak_first)} at the first call, which records"
            * (self.peak_first > self.peak)
            + f" (guessed from what autograd keeps, as none was watched: {self.doubt})"
            * bool(self.doubt)
        )


def mib(size: int) -> str:
    """A size in bytes as text in MiB."""
    return f"{size / 2**20:,.1f} MiB"
