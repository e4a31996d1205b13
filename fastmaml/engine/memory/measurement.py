"""A small meta-step that is run and watched: what it needs eagerly, and from a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import attempted
from fastmaml.engine.base.storages import address, size
from fastmaml.engine.memory.live import Alive, LiveMemory, QuickLiveMemory
from fastmaml.engine.memory.liveness import alive_in
from fastmaml.engine.recording.memory_reuse import made_by
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.tape import Tape, record
from fastmaml.engine.step.inner_loop import InnerLoop
from fastmaml.engine.step.program import Call, tensors_of
from fastmaml.gradients.base import Carry, Meta, Query
from fastmaml.rules.base import Tensors


class Measurement(NamedTuple):
    """What a small meta-step needed.

    Attributes:
        tasks: how many there were.
        held: of how many inner steps memory was held at the same time.
        peak: bytes, and how many of them however many tasks there are.
        growth: bytes that one more inner step holds for one task.
        outputs: bytes that a task leaves.
        eagerly: the same before it is replayed, which is what a recording is made of; None where
            none is.
    """

    tasks: int
    held: int
    peak: Alive
    growth: float
    outputs: float
    eagerly: Measurement | None = None


def recorded(call: Call, scale: float) -> Measurement | None:
    """Run and record a small meta-step, and watch it; None where it cannot be recorded.

    Args:
        call: what runs, of few tasks and inner steps.
        scale: how many times more tasks there will be.
    """
    forward = call.program.forward
    given = tensors_of((call.meta, forward.frozen, forward.buffers, call.data.tree()))
    inputs = [x for x in given if x.layout is torch.strided and address(x)]
    return attempted(lambda: watched(call, scale, inputs))[1]


def watched(
    call: Call,
    scale: float,
    inputs: Sequence[Tensor] | None = None,
    memory: LiveMemory | None = None,
) -> Measurement:
    """Run a small meta-step, and watch it.

    Args:
        call: what runs, of few tasks and inner steps.
        scale: how many times more tasks there will be.
        inputs: what is read anew by a replay, which is then measured, too.
        memory: what watches it; None for the usual one.

    Raises:
        UncapturableError: `inputs` are given, and there can be no recording.
    """
    method, meta = call.program.method, call.meta
    tape = None if inputs is None else Tape(len(inputs))
    tasks, steps = len(call.seeds), call.program.steps
    # Tasks have these in common, and so has what goes back to them.
    common = {size(x) for x in (*meta.shared.values(), *meta.rates.values())}
    memory = QuickLiveMemory(common, scale) if memory is None else memory
    loop = _Marked(**vars(call.loop()), memory=memory, tape=tape or Tape(0))
    outputs: list[Tensor] = []

    def run(*_: Tensor) -> list[Tensor]:
        found, queries = method.meta_gradient(loop, meta)
        outputs.extend(tensors_of((queries[-1].losses, queries[-1].outputs, loop.buffers)))
        return [*outputs, *tensors_of(found)]

    with memory:
        results = run() if inputs is None else record(run, inputs, tape)[1]
    marks = [loop.marks[step] for step in range(steps + 1)]
    left = sum(x.nbytes for x in outputs) / tasks
    del results

    def measurement(peak: Alive, before: Sequence[int]) -> Measurement:
        first = 1 if steps > 1 else 0
        growth = max(0.0, (before[steps] - before[first]) / max(1, steps - first) / tasks)
        return Measurement(tasks, method.held_steps(steps), peak, growth, left)

    eagerly = measurement(memory.peak, [mark.live for mark in marks])
    if tape is None:
        return eagerly
    lives, after = alive_in(cleaned(tape), common)
    before = [lives[_first_step(tape, mark.values)].bytes for mark in marks]
    # After its last step, unlike between two, a replay needs no state of the rule's.
    before[steps] += marks[0].state
    peak = max(after, key=lambda alive: alive.at(scale), default=Alive())
    return measurement(peak, before)._replace(eagerly=eagerly)


def _first_step(tape: Tape, values: int) -> int:
    """The number of the first step that makes none of the first so many values."""
    later = (i for i, step in enumerate(tape.steps) if min(made_by(step), default=-1) >= values)
    return next(later, len(tape.steps))


class _Moment(NamedTuple):
    """How many values the tape had, the bytes then alive, and those of the rule's state."""

    values: int
    live: int
    state: int


@dataclass(frozen=True)
class _Marked(InnerLoop):
    """Notes where each inner step first begins, and the query pass after them."""

    memory: LiveMemory = field(kw_only=True)
    tape: Tape = field(kw_only=True)
    marks: dict[int, _Moment] = field(default_factory=dict)

    def gradient(self, step: int, carry: Carry, meta: Meta, *, create_graph: bool) -> Tensors:
        self._mark(step, carry.state)
        return super().gradient(step, carry, meta, create_graph=create_graph)

    def query(self, step: int, parameters: Tensors, shared: Tensors) -> Query:
        self._mark(step, ())
        return super().query(step, parameters, shared)

    def _mark(self, step: int, state: Any) -> None:
        if step not in self.marks:
            size = sum(x.numel() * x.element_size() for x in tensors_of(state))
            moment = _Moment(len(self.tape.owner), self.memory.live_bytes, size)
            self.marks[step] = moment
