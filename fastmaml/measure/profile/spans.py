"""`Spans`: how long each phase of a step takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, final

import torch

from fastmaml.measure.profile.phases import REST, Sink

Switches = list[tuple[Any, str]]
"""A moment, and the phase that begins there."""


@final
class HostClock:
    """The host's time, in moments of nanoseconds."""

    def now(self) -> int:
        """This moment, in nanoseconds."""
        return time.perf_counter_ns()

    def settle(self) -> None:
        """Return at once: the host has nothing under way."""

    def between(self, a: int, b: int) -> float:
        """The seconds from moment `a` to moment `b`."""
        return (b - a) / 1e9


@final
class DeviceClock:
    """A CUDA device's time: moments are events on its current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> torch.cuda.Event:
        """The moment at which the device arrives here."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def settle(self) -> None:
        """Wait until the device has arrived everywhere."""
        torch.cuda.synchronize(self.device)

    def between(self, a: torch.cuda.Event, b: torch.cuda.Event) -> float:
        """The seconds from event `a` to event `b`."""
        return float(a.elapsed_time(b)) / 1e3


Clock = HostClock | DeviceClock


def clock_of(device: torch.device) -> Clock:
    """The one that sees this device's work."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()


@final
class Spans(Sink):
    """Times the phases of one step, which add up to its wall time.

    Chunks that run on several threads at the same time count for their share of it: a second of
    each of two threads is a second of the step. What a step spends outside its chunks, and what a
    thread waits for others, is the rest.

    Args:
        clock: sees the work.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._local = threading.local()
        self._outer: Switches = []
        self._chunks: list[tuple[int, Switches]] = []

    def switch(self, phase: str) -> None:
        """Note the moment at which this phase begins."""
        self._local.now.append((self.clock.now(), phase))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Everything that is timed."""
        self.clock.settle()
        self._local.now = self._outer
        self.switch(REST)
        yield
        self.clock.settle()
        self.switch(REST)
        self.clock.settle()

    @contextmanager
    def chunk(self) -> Iterator[None]:
        """Its switches by themselves, as another thread's may lie between them."""
        before, own = getattr(self._local, "now", None), Switches()
        self._local.now = own
        self.switch(REST)
        try:
            yield
        finally:
            self.switch(REST)
            self._local.now = before
            self._chunks.append((threading.get_ident(), own))

    @property
    def wall(self) -> float:
        """The seconds of the whole step."""
        return self.clock.between(self._outer[0][0], self._outer[-1][0])

    @property
    def threads(self) -> int:
        """How many threads chunks ran on."""
        return len({thread for thread, _ in self._chunks})

    def seconds(self) -> dict[str, float]:
        """Of every phase that there was; they add up to `wall`."""
        found = self._durations(self._outer)
        for _, switches in self._chunks:
            for phase, seconds in self._durations(switches).items():
                found[phase] = found.get(phase, 0.0) + seconds / self.threads
        others = sum(seconds for phase, seconds in found.items() if phase != REST)
        return {**found, REST: self.wall - others}

    def _durations(self, switches: Switches) -> dict[str, float]:
        found: dict[str, float] = {}
        for (a, phase), (b, _) in pairwise(switches):
            found[phase] = found.get(phase, 0.0) + self.clock.between(a, b)
        return found
