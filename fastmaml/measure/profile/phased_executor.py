"""`PhasedExecutor`: the meta-step as an executor runs it, with marks where a phase begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.engine.recording.arguments import FlatCall, flattened
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.chunks import Sum
from fastmaml.engine.recording.native import natively
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay import Recording, Traceable, replay
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import Operation, Tape, UncapturableError, record
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Call, Executor, MetaResult
from fastmaml.measure.profile.phases import WHOLE, Phased, Silence, Sink


@final
class PhasedExecutor:
    """Runs meta-steps as `execute` does, and tells `sink` which phase begins.

    What `execute` replays is recorded here anew, with marks between the operations, which are the
    same; a native program is cut at the marks, and made of single operations for a sink that
    follows them. A CUDA graph becomes the operations that it was made of, one by one; in what
    Inductor compiles no phase can be seen.

    Args:
        execute: of a `MAML`, which has run such a meta-step before.
        parallel: run chunks on several threads where `execute` does.
    """

    def __init__(self, execute: Executor, parallel: bool = True) -> None:
        self.execute, self.parallel = execute, parallel
        self.sink: Sink = Silence()
        self._replays: dict[int, tuple[Recording, Recording]] = {}

    def __call__(self, call: Call) -> MetaResult:
        """The result of the meta-step, as `meta_step` gives it, with its phases marked."""
        if self.opaque:
            with self.sink.chunk():
                self.sink.switch(WHOLE)
                return self.execute(call)
        flat = flattened(call)
        if self.refusal(flat) is not None:
            return meta_step(phased(call, self.sink))
        return self._replayed(flat)

    @property
    def opaque(self) -> bool:
        """Whether phases are invisible."""
        return isinstance(self.execute, Captured) and self.execute.prepare is not None

    @property
    def replays(self) -> Sequence[Recording]:
        """The recordings made so far: of a chunk, and where it is another size, of the last one."""
        return tuple(as_timed for as_timed, _ in self._replays.values())

    def refusal(self, flat: FlatCall) -> str | None:
        """Why it runs eagerly; None where it is replayed."""
        if not isinstance(self.execute, Captured):
            return "asked for"
        try:
            self.execute.recording(flat.chunks()[0])
        except UncapturableError as error:
            return str(error)
        return None

    def switch(self, phase: str) -> None:
        """What a recording's marks call."""
        self.sink.switch(phase)

    def _replayed(self, flat: FlatCall) -> MetaResult:
        chunks = flat.chunks()
        replays = [self._replay(chunk) for chunk in chunks]
        own = flat.seeds.device.type == "cpu"
        total = _PhasedSum(replays[0].layout.split, self.sink)
        return replay(chunks, replays, own, self.parallel, self.sink.chunk, total)

    def _replay(self, flat: FlatCall) -> Recording:
        if flat.tasks not in self._replays:
            self._replays[flat.tasks] = recorded(flat, self.switch)
        return self._replays[flat.tasks][self.sink.follows]


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
        """The values from the next one on are of this phase."""
        self.begins.append(len(self.tape.owner))
        self.phases.append(phase)

    def of(self, value: int) -> str:
        """The phase in which it was made."""
        return self.phases[max(bisect_right(self.begins, value) - 1, 0)]


@dataclass(frozen=True)
class _Mark:
    """Stands for an operation of PyTorch where a tape becomes Python text."""

    _op: Callable[[str], None]


def phased(call: Call, sink: Sink) -> Call:
    """The same, told to `sink`."""
    return call.by(method=Phased(call.program.method, sink))


def recorded(flat: FlatCall, switch: Callable[[str], None]) -> tuple[Recording, Recording]:
    """As `Captured` records a chunk, with marks; and the same by single operations."""
    tape = Tape(len(flat.tensors()))
    tags = Tags(tape)
    chunk = Traceable(replace(flat, call=phased(flat.call, tags)))
    with torch.enable_grad():
        record(chunk, chunk.tensors, tape)
    cleaned(tape)
    marked, on_cpu = _marked(tape, tags, switch), flat.seeds.device.type == "cpu"
    single = compiled(marked)
    native = (natively(marked) if on_cpu else None) or single
    found = [Recording.of(run, tape, chunk.layout) for run in (native, single)]
    return found[0], found[1]


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
