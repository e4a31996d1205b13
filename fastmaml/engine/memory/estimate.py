"""The memory of a meta-step, from a small one that is run and watched."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fastmaml.engine.base.storages import size
from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.engine.memory.measurement import Measurement, recorded, watched
from fastmaml.engine.step.program import Call, Program, tensors_of
from fastmaml.gradients import GradientMethod

STEPS = 2
"""Of the small meta-step: the first one begins at θ itself, and all others are alike."""

TASKS = 2
"""Of the small meta-step: one alone runs plainly, and all others under vmap."""


@dataclass(frozen=True)
class Estimator:
    """Makes a memory law for each way to run a meta-step.

    Attributes:
        call: of the first two tasks, or the only one.
        tasks: how many tasks there are in all.
        steps: the number of inner steps, near which the laws hold best.
        lanes: how many chunks run from recordings at the same time; 0 where none is recorded.
        device: where it would run; None for where the call's tensors are.
    """

    call: Call
    tasks: int
    steps: int
    lanes: int
    device: torch.device | None = None

    def at_once(self, chunk: int) -> int:
        """How many tasks run at the same time."""
        return min(self.tasks, chunk * max(self.lanes, 1))

    def sample(self, program: Program, chunk: int) -> Measurement:
        """Run one of at most two inner steps and two tasks, and watch it.

        Args:
            program: decided but for its chunks and its number of steps.
            chunk: of how many tasks chunks will be.
        """
        some, steps = min(chunk, TASKS), min(self.steps, STEPS)
        program = replace(program, method=program.method.holding_all(), steps=steps)
        small = self.call._replace(program=program).tried(some)
        as_recorded, eager = (
            small.by(forward=replace(program.forward, fuses=fuses)) for fuses in (True, False)
        )
        if self.lanes and not program.depends.refusal:
            found = recorded(as_recorded, chunk / some)
            if found is not None:
                return found
        return watched(eager, chunk / some)

    def law(self, found: Measurement, method: GradientMethod, chunk: int) -> MemoryLaw:
        """The law of chunks of such a size, whose sample has one task if they have one."""
        chunks = math.ceil(self.tasks / chunk)
        common = 0 if found.tasks == 1 else found.peak.marked
        first = max(0.0, (found.peak.bytes - common) / found.tasks - found.held * found.growth)
        held, more = self._held(method)
        fixed = max(0.0, first + found.growth * held)
        # Chunks before have left their outputs and sum; run eagerly, the last of them its own.
        sums = sum(x.nbytes for x in tensors_of(self.call.meta))
        left = sums * min(chunks - 1, 1 if self.lanes else 2)
        left += round(found.outputs * (self.tasks - self.at_once(chunk)))
        law = MemoryLaw(min(max(self.lanes, 1), chunks) * common + left, fixed, found.growth * more)
        # Each chunk's meta-gradient is added to the others', and the whole multiplied by a scalar.
        least = sums * (3 if chunks > 1 else 2)
        missing = least - law.peak(self.at_once(chunk), self.steps)
        return replace(law, shared=law.shared + max(0, missing))

    def _held(self, method: GradientMethod) -> tuple[float, float]:
        """How many inner steps are held, whatever their number, and how many more for each."""
        method = method.on(self.device or self.call.seeds.device)
        held = method.held_steps(self.steps)
        more = (method.held_steps(self.steps + 100) - held) / 100
        return held - more * self.steps, more

    def first_law(self, found: Measurement, program: Program) -> MemoryLaw:
        """The law of the first call, which runs one chunk eagerly, on copies, and records that."""
        chunk = program.chunk
        if found.eagerly is None:
            return self.law(found, program.method, chunk)
        law = replace(self, tasks=chunk, lanes=0).law(found.eagerly, program.method, chunk)
        common = tensors_of((self.call.meta, program.forward.frozen, program.forward.buffers))
        own = sum(map(size, tensors_of(self.call.data.tree()))) / self.call.data.tasks
        return replace(law, shared=law.shared + sum(map(size, common)), fixed=law.fixed + own)

    def guess(self, kept: tuple[int, int], program: Program) -> MemoryLaw:
        """A rough law, from what autograd keeps of an inner step and of the query pass."""
        tables = {table.name for table in program.tables}
        copy = sum(p.nbytes for n, p in self.call.meta.adapted.items() if n not in tables)
        sums = sum(x.nbytes for x in tensors_of(self.call.meta))
        if not program.method.differentiates_query:
            return MemoryLaw(2 * sums, max(kept) + 2 * copy, 0)  # no step is kept
        if not program.method.steps_once:
            held, more = self._held(program.method)
            return MemoryLaw(2 * sums, sum(kept) + round((2 + held) * copy), round(more * copy))
        return MemoryLaw(2 * sums, kept[1] + 2 * copy, kept[0] + copy)
