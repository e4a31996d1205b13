"""Recordings of chunks of a meta-step: made by tracing them, replayed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from fastmaml.engine.base.equality import same_values
from fastmaml.engine.recording.arguments import FlatCall, Function, Layout, laid_out
from fastmaml.engine.recording.chunks import Sum, run_chunks
from fastmaml.engine.recording.optimize import element_count, operation_count
from fastmaml.engine.recording.tape import Tape
from fastmaml.engine.step.program import MetaResult

ONE_THREAD_ELEMENTS = 2**16
"""Operations with fewer results than this, on the average, run on one thread: to wake a second one
costs more, and much more where the cores have other work too."""


@final
class Traceable:
    """A chunk as a function of flat tensors.

    Attributes:
        tensors: copies of its arguments, no two of which share memory.
        layout: of the results, once it has run.
    """

    layout: Layout

    def __init__(self, flat: FlatCall) -> None:
        self._flat, self.tensors = flat, [x.clone() for x in flat.tensors()]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The eager run's results."""
        found, self.layout = laid_out(self._flat.run(tensors))
        return found


@dataclass
class Uses:
    """How often recordings that say the same were used."""

    calls: int = 0


@dataclass(eq=False)
class Recording:
    """A chunk of the meta-step.

    Attributes:
        run: of the flat tensors, gives the flat results.
        layout: of the results.
        operations: how many calls a replay makes, views not counted.
        small: whether the operations are too small for more than one thread.
        fixed: see `Tape`.
        uses: how often it, and others that follow from the same, were used.
    """

    run: Function
    layout: Layout
    operations: int
    small: bool
    fixed: Sequence[tuple[Tensor, Tensor]] = ()
    uses: Uses = field(default_factory=Uses)

    @classmethod
    def of(
        cls,
        run: Function,
        tape: Tape,
        layout: Layout,
        fixed: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Recording:
        """What runs, of a cleaned tape."""
        operations = operation_count(tape)
        small = element_count(tape) < ONE_THREAD_ELEMENTS * operations
        return cls(run, layout, operations, small, fixed)

    def stale(self) -> bool:
        """Whether a tensor that must not change did."""
        return any(not same_values(x, before) for x, before in self.fixed)


def replay(
    chunks: Sequence[FlatCall],
    recordings: Sequence[Recording],
    own: bool,
    parallel: bool = True,
    around: Callable[[], AbstractContextManager[None]] | None = None,
    total: Sum | None = None,
) -> MetaResult:
    """The meta-step, of its chunks and their recordings.

    Args:
        chunks: all of them.
        recordings: one for each.
        own: whether they are operations of PyTorch on the CPU, which run on threads of our choice.
        parallel: run chunks on several threads at a time, where that is so.
        around: a context for each chunk's replay, on its thread.
        total: adds up the results.
    """

    def run(number: int) -> list[Tensor]:
        if around is None:
            return recordings[number].run(*chunks[number].tensors())
        with around():
            return recordings[number].run(*chunks[number].tensors())

    layout = recordings[0].layout
    spread, small = own and parallel, own and recordings[0].small
    return layout.result(run_chunks(run, len(chunks), layout.split, spread, small, total))
