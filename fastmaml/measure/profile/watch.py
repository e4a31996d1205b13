"""`Watch`: calls, FLOPs and live bytes of each phase, as PyTorch dispatches them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from fastmaml.engine.memory.live import LiveMemory
from fastmaml.measure.profile.flops import flops_of
from fastmaml.measure.profile.phases import REST, Sink


class Sample(NamedTuple):
    """What was alive after an operator, or when a phase began."""

    seconds: float
    """Since the step began."""
    phase: str
    """That the step's own thread is in, or the first one that runs a chunk."""
    bytes: dict[str, int]
    """Live bytes by the phase in which they were made."""

    @property
    def total(self) -> int:
        """The live bytes of all phases together."""
        return sum(self.bytes.values())


@final
@dataclass
class Counts:
    """Of one phase.

    Attributes:
        calls: of operators; views are none.
        flops: of matrix products, convolutions and attention.
        unknown: operators with products that there is no formula for.
        peak_bytes: the most that was alive after one of its operators.
        retained_bytes: the most that it had made and that was alive while it was over.
    """

    calls: int = 0
    flops: int = 0
    unknown: set[str] = field(default_factory=set)
    peak_bytes: int = 0
    retained_bytes: int = 0


@final
class Watch(Sink):
    """Follows one step on all of its threads; see `LiveMemory` for what it sees.

    Attributes:
        counts: by phase.
        samples: of live memory, in order.
        peak_bytes: the most that was alive at once, beyond what was before the step.
    """

    follows: ClassVar[bool] = True

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        self.samples: list[Sample] = []
        self.peak_bytes = 0
        self.live: Counter[tuple[int, str]] = Counter()
        self.lock = threading.RLock()  # a tensor may die on another thread than it was made on
        self._local = threading.local()
        self._phases: dict[int, str] = {}
        self._begun = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Everything that is followed."""
        self._begun = time.perf_counter_ns()
        with self._follow():
            yield
            self._sample()

    @contextmanager
    def chunk(self) -> Iterator[None]:
        """On the step's own thread it is followed already."""
        if getattr(self._local, "follower", None) is not None:
            before = self._phases[threading.get_ident()]
            yield
            self.switch(before)
        else:
            with self._follow():
                yield

    def switch(self, phase: str) -> None:
        """What this thread makes now is this phase's."""
        with self.lock:
            self._phases[threading.get_ident()] = phase
            self._local.follower.phase = phase
            self._sample()

    def ran(self, phase: str, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator of this phase has been called."""
        with self.lock:
            counts = self.counts.setdefault(phase, Counts())
            if not func.is_view and not _is_nothing(result):
                flops = flops_of(func, args, kwargs, result)
                counts.calls += 1
                counts.flops += flops or 0
                if flops is None:
                    counts.unknown.add(str(func._schema.name))
            counts.peak_bytes = max(counts.peak_bytes, self._sample().total)

    @contextmanager
    def _follow(self) -> Iterator[None]:
        thread, follower = threading.get_ident(), _Follower(self)
        self._local.follower, self._phases[thread] = follower, REST
        try:
            with follower:
                yield
        finally:
            self._local.follower = None
            del self._phases[thread]

    def _sample(self) -> Sample:
        by_phase: Counter[str] = Counter()
        over: Counter[str] = Counter()
        for (thread, phase), size in self.live.items():
            by_phase[phase] += size
            if self._phases.get(thread) != phase:
                over[phase] += size
        for phase, size in over.items():
            counts = self.counts.setdefault(phase, Counts())
            counts.retained_bytes = max(counts.retained_bytes, size)
        phases = [*self._phases.values()]
        shown = next((p for p in phases if p != REST), REST)
        moment = (time.perf_counter_ns() - self._begun) / 1e9
        sample = Sample(moment, shown, dict(by_phase))
        self.peak_bytes = max(self.peak_bytes, sample.total)
        self.samples.append(sample)
        return sample


@final
class _Follower(LiveMemory):
    """One thread's part of a `Watch`."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch, self.phase = watch, REST
        self.thread = threading.get_ident()
        self._made: dict[int, str] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """As `LiveMemory`, and tells the watch."""
        phase = self.phase
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.watch.ran(phase, func, args, kwargs or {}, result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        with self.watch.lock:
            phase = self._made.setdefault(storage._cdata, self.phase)
            before = self.live_bytes
            super()._count(storage)
            self.watch.live[self.thread, phase] += self.live_bytes - before

    def _forget(self, key: int) -> None:
        with self.watch.lock:
            before = self.live_bytes
            super()._forget(key)
            self.watch.live[self.thread, self._made.pop(key)] += self.live_bytes - before


def _is_nothing(result: Any) -> bool:
    """Whether it is forward mode's stand-in for zero, which nobody computes."""
    return isinstance(result, Tensor) and result._is_zerotensor()
