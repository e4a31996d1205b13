"""The phases of a meta-step, and the inner loop that says which one it is in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fastmaml.engine.step.inner_loop import InnerLoop
from fastmaml.gradients.base import Carry, GradientMethod, Loop, Meta, MetaGradient, Query
from fastmaml.rules.base import Tensors

SAMPLING = "sampling"
SUPPORT = "support forward"
INNER = "inner backward"
UPDATE = "update"
QUERY = "query"
RECOMPUTED = "recomputation"
META = "meta-backward"
WHOLE = "meta-step"
OPTIMIZER = "optimizer"
REST = "rest"

INSIDE = (SUPPORT, INNER, UPDATE, QUERY, RECOMPUTED, META)
"""What a gradient method does with the inner loop."""

PHASES = (SAMPLING, *INSIDE, WHOLE, OPTIMIZER, REST)
"""All of them; `WHOLE` stands for those of `INSIDE` where they cannot be told apart."""


class Sink(ABC):
    """Is told what phase begins, on every thread."""

    follows: ClassVar[bool] = False
    """Whether it is to see every operation, so that none may run inside a native program."""

    @abstractmethod
    def switch(self, phase: str) -> None:
        """This phase begins on the calling thread, and the one before it ends."""

    def step(self) -> AbstractContextManager[None]:
        """Around a whole step, on the thread that it runs on."""
        return self._within(REST)

    def chunk(self) -> AbstractContextManager[None]:
        """Around a chunk of tasks, on the thread that it runs on."""
        return self._within(REST)

    @contextmanager
    def _within(self, after: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.switch(after)


@final
class Silence(Sink):
    """A sink that ignores the phases."""

    def switch(self, phase: str) -> None:
        """Ignore it."""


@final
class Marks:
    """Which phase a chunk is in; phases lie within each other, and the innermost one counts."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.again = False  # the last query pass is over: inner steps now run once more
        self._open: list[str] = []

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """The block is of this phase."""
        if self.again and phase != QUERY:
            phase = RECOMPUTED
        self._open.append(phase)
        self.sink.switch(phase)
        try:
            yield
        finally:
            self._open.pop()
            if self._open:
                self.sink.switch(self._open[-1])


@final
@dataclass(frozen=True)
class PhasedLoop(InnerLoop):
    """An `InnerLoop` that marks its phases; whatever lies between them is the meta-backward's.

    Attributes:
        marks: where.
    """

    marks: Marks = field(kw_only=True)

    def start(self, meta: Meta) -> Carry:
        """Part of the first support pass, but for its derivative."""
        if self.marks.again:
            return super().start(meta)
        with self.marks.inside(SUPPORT):
            return super().start(meta)

    def support_loss(self, step: int, parameters: Tensors, shared: Tensors) -> Tensor:
        """The support loss, in the phase of the support forward."""
        with self.marks.inside(SUPPORT):
            return super().support_loss(step, parameters, shared)

    def gradient(self, step: int, carry: Carry, meta: Meta, *, create_graph: bool) -> Tensors:
        """Inner backward, around the support forward."""
        with self.marks.inside(INNER):
            return super().gradient(step, carry, meta, create_graph=create_graph)

    def update(self, step: int, carry: Carry, gradient: Tensors, meta: Meta) -> Carry:
        """The next carry, in the phase of the update."""
        with self.marks.inside(UPDATE):
            return super().update(step, carry, gradient, meta)

    def query(self, step: int, parameters: Tensors, shared: Tensors) -> Query:
        """Query; all that comes after the last one is derivatives, and steps run once more."""
        with self.marks.inside(QUERY):
            found = super().query(step, parameters, shared)
        self.marks.again |= step == self.steps
        return found


@final
@dataclass(frozen=True)
class Phased(GradientMethod):
    """A gradient method, with its phases marked.

    Attributes:
        method: the gradient method.
        sink: is told.
    """

    method: GradientMethod
    sink: Sink

    @property
    def steps_once(self) -> bool:  # type: ignore[override]  # the loop is made as for the method
        """Whether the method runs each inner step once."""
        return self.method.steps_once

    def on(self, device: torch.device) -> Phased:
        """The method as it runs there, with its phases marked."""
        return replace(self, method=self.method.on(device))

    @property
    def unrecordable(self) -> str:
        """As the method says."""
        return self.method.unrecordable

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """That of the method, to the same bits."""
        if not isinstance(loop, InnerLoop):
            raise TypeError(f"the phases of a {type(loop).__name__} are unknown.")
        own: dict[str, Any] = {f.name: getattr(loop, f.name) for f in fields(loop)}
        with self.sink.chunk():
            marks = Marks(self.sink)
            with marks.inside(META):
                return self.method.meta_gradient(PhasedLoop(**own, marks=marks), meta)
