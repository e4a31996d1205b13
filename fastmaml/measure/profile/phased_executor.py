"""`PhasedExecutor`: the meta-step as an executor runs it, with marks where a phase begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.engine.recording.arguments import Flat, Function, Layout, flattened, laid_out
from fastmaml.engine.recording.captured import SMALL, Captured
from fastmaml.engine.recording.chunks import Sum, run_chunks
from fastmaml.engine.recording.executors import Executor
from fastmaml.engine.recording.optimize import cleaned, compiled, element_count, operation_count
from fastmaml.engine.recording.tape import Operation, Tape, UncapturableError, record
from fastmaml.engine.step.meta_step import MetaResult, Program, meta_step
from fastmaml.measure.profile.phases import WHOLE, Phased, Silence, Sink


@dataclass(frozen=True)
class Replay:
    """A chunk's recording.

    Attributes:
        run: of the flat tensors, gives the flat results, and switches phases in between.
        layout: of the results.
        operations: how many calls a replay makes, views and marks not counted.
        small: whether the operations are too small for more than one thread.
    """

    run: Function
    layout: Layout
    operations: int
    small: bool


@final
class PhasedExecutor:
    """Runs meta-steps as `execute` does, and tells `sink` which phase begins.

    What `execute` replays is recorded here anew, with marks between the operations, which are the
    same. A CUDA graph becomes the operations that it was made of, one by one; in what Inductor
    compiles no phase can be seen.

    Args:
        execute: of a `MAML`, which has run such a meta-step before.
        parallel: run chunks on several threads where `execute` does.
    """

    def __init__(self, execute: Executor, parallel: bool = True) -> None:
        self.execute, self.parallel = execute, parallel
        self.sink: Sink = Silence()
        self._replays: dict[int, Replay] = {}

    def __call__(self, program: Program, *arguments: Any) -> MetaResult:
        """As `meta_step`."""
        if self.opaque:
            with self.sink.chunk():
                self.sink.switch(WHOLE)
                return self.execute(program, *arguments)
        flat = flattened(program, *arguments)
        if self.refusal(flat) is not None:
            phased = replace(program, gradient=Phased(program.gradient, self.sink))
            return meta_step(phased, *arguments)
        return self._replayed(flat)

    @property
    def opaque(self) -> bool:
        """Whether phases are invisible."""
        return isinstance(self.execute, Captured) and self.execute.prepare is not compiled

    @property
    def replays(self) -> Sequence[Replay]:
        """The recordings made so far: of a chunk, and where it is another size, of the last one."""
        return tuple(self._replays.values())

    def refusal(self, flat: Flat) -> str | None:
        """Why it runs eagerly; None where it is replayed."""
        if not isinstance(self.execute, Captured):
            return "asked for"
        try:
            self.execute.recording(flat.chunk(0, min(flat.program.chunk, flat.tasks)))
        except UncapturableError as error:
            return str(error)
        return None

    def switch(self, phase: str) -> None:
        """What a recording's marks call."""
        self.sink.switch(phase)

    def _replayed(self, flat: Flat) -> MetaResult:
        size, tasks = flat.program.chunk, flat.tasks
        chunks = [flat.chunk(i, min(i + size, tasks)) for i in range(0, tasks, size)]
        replays = [self._replay(chunk) for chunk in chunks]

        def run(number: int) -> list[Tensor]:
            with self.sink.chunk():
                return replays[number].run(*chunks[number].tensors())

        own, layout = flat.seeds.device.type == "cpu", replays[0].layout
        spread, small = own and self.parallel, own and replays[0].small
        total = _PhasedSum(layout.split, self.sink)
        return layout.result(run_chunks(run, len(chunks), layout.split, spread, small, total))

    def _replay(self, flat: Flat) -> Replay:
        if flat.tasks not in self._replays:
            self._replays[flat.tasks] = recorded(flat, self.switch)
        return self._replays[flat.tasks]


@final
class _PhasedSum(Sum):
    """Adding up is the rest's, on whichever thread it happens."""

    def __init__(self, split: int, sink: Sink) -> None:
        super().__init__(split)
        self.sink = sink

    def add(self, number: int, results: list[Tensor]) -> None:
        """Take the results of one chunk."""
        with self.sink.chunk():
            super().add(number, results)


@final
@dataclass
class Tags(Sink):
    """The phases in which a tape's values were made: each with the first value that may be its."""

    tape: Tape
    begins: list[int] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def switch(self, phase: str) -> None:
        """As of the next value."""
        self.begins.append(len(self.tape.owner))
        self.phases.append(phase)

    def of(self, value: int) -> str:
        """The phase in which it was made."""
        return self.phases[max(bisect_right(self.begins, value) - 1, 0)]


@dataclass(frozen=True)
class _Mark:
    """Stands for an operation of PyTorch where a tape becomes Python text."""

    _op: Callable[[str], None]


def recorded(flat: Flat, switch: Callable[[str], None]) -> Replay:
    """As `Captured` records a chunk, with marks."""
    tensors = [x.clone() for x in flat.tensors()]  # no two of which share memory
    tape = Tape(len(tensors))
    tags = Tags(tape)
    program = replace(flat.program, gradient=Phased(flat.program.gradient, tags))
    layout: list[Layout] = []

    def function(*tensors: Tensor) -> list[Tensor]:
        found, how = laid_out(replace(flat, program=program).run(tensors))
        layout[:] = [how]
        return found

    with torch.enable_grad():
        record(function, tensors, tape)
    cleaned(tape)
    operations = operation_count(tape)
    small = element_count(tape) < SMALL * operations
    return Replay(compiled(_marked(tape, tags, switch)), layout[0], operations, small)


def _marked(tape: Tape, tags: Tags, switch: Callable[[str], None]) -> Tape:
    """With a mark before every step that begins a phase; what makes nothing goes on with the last.

    A result that a later phase shares was computed in the first phase that wanted it.
    """
    mark, now, steps = _Mark(switch), "", list[Any]()
    for step in tape.steps:
        made = step.made() if isinstance(step, Operation) else [step[0]]
        phase = tags.of(min(made)) if made else now
        if phase != now and isinstance(step, Operation):
            steps.append(Operation(mark, (phase,), {}, None))
            now = phase
        steps.append(step)
    return replace(tape, steps=steps)
