"""What a report holds on request: a trace of one step, and a snapshot of the GPU's memory."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, final

import torch
from torch.autograd.profiler import record_function

from fastmaml.maml import MAML
from fastmaml.measure.profile.phased_executor import PhasedExecutor
from fastmaml.measure.profile.phases import Silence, Sink
from fastmaml.measure.profile.steps import Step, executed_by

HISTORY = 200_000
"""Allocations that a snapshot holds."""


class Measured(Protocol):
    """What the extras need of a profile: the MAML, a step of it, and the device."""

    @property
    def maml(self) -> MAML:
        """The `MAML` that is profiled."""

    @property
    def step(self) -> Step:
        """A training step of it, to run."""

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""


@final
class Labels(Sink):
    """Phases as ranges of `torch.profiler`."""

    def __init__(self) -> None:
        self._local = threading.local()

    def switch(self, phase: str) -> None:
        """The range before this one ends."""
        self._local.ranges.close()
        self._local.ranges.enter_context(record_function(phase))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it, this thread's phases open and close their ranges."""
        with ExitStack() as ranges:
            before, self._local.ranges = getattr(self._local, "ranges", None), ranges
            yield
        self._local.ranges = before

    chunk = step


def trace(measured: Measured) -> tuple[bytes, str]:
    """One step as Chrome and Perfetto read it, and what to know of it."""
    executor = PhasedExecutor(measured.maml._execute, parallel=False)
    learner = executed_by(measured.maml, executor)
    measured.step(learner, Silence())
    activities = [torch.profiler.ProfilerActivity.CPU]
    if measured.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    executor.sink = labels = Labels()
    with torch.profiler.profile(
        activities=activities,
        record_shapes=True,
        acc_events=True,  # else PyTorch 2.11 warns
    ) as recorded:
        measured.step(learner, labels)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "trace.json"
        recorded.export_chrome_trace(str(path))
        return path.read_bytes(), (
            "trace.json: one step, its phases as ranges, for ui.perfetto.dev or chrome://tracing; "
            "its chunks run one after the other, as the tracer sees one thread"
        )


def snapshot(measured: Measured) -> tuple[bytes | None, str]:
    """The allocator's history of one plain step; None with the reason where there is none."""
    if measured.device.type != "cuda":
        return None, (
            "memory_snapshot.pickle: not written, as only the CUDA allocator keeps a history; "
            "profile.png has live memory over the step"
        )
    torch.cuda.memory._record_memory_history(max_entries=HISTORY)
    try:
        measured.step(measured.maml, Silence())
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "snapshot.pickle"
            torch.cuda.memory._dump_snapshot(str(path))
            return path.read_bytes(), "memory_snapshot.pickle: open it at pytorch.org/memory_viz"
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
