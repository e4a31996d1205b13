"""The adjoint scan: keep where each inner step began, then go back one step at a time."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_map

from fastmaml.gradients.base import (
    Carry,
    GradientMethod,
    Loop,
    Meta,
    MetaGradient,
    Query,
    add,
    detached,
    leaves_of,
    pull_back,
)
from fastmaml.gradients.offload import away, back


@dataclass(frozen=True, repr=False)
class AdjointScan(GradientMethod):
    """λ_k = (∂θ_{k+1}/∂θ_k)ᵀ λ_{k+1}, step by step, from θ_k alone.

    Memory: one copy of what adapts (with the rule's state) for each kept step, and the work of one
    step. `segments` keeps fewer: only where each segment began, and one segment at a time is run
    again, for one more gradient a step; about √steps segments need the least memory. With
    `offload` the carries wait on the CPU, so that a device's memory does not grow with the steps.

    Args:
        segments: how many carries to keep; None keeps every step's and runs none again for it.
        offload: whether they wait on the CPU, in pinned memory, at the price of two copies each.
    """

    segments: int | None = None
    offload: bool = False
    steps_once: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.segments is not None and not (isinstance(self.segments, int) and self.segments > 0):
            raise ValueError(
                f"{type(self).__name__}(segments={self.segments!r}): give a positive number, or "
                "None to keep every step."
            )
        if not isinstance(self.offload, bool):
            raise ValueError(
                f"{type(self).__name__}(offload={self.offload!r}): give True to keep the inner "
                "steps on the CPU, or False to keep them on the model's device."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(segments={self.segments}{', offload=True' * self.offload})"

    def on(self, device: torch.device) -> AdjointScan:
        """On the CPU the carries are there already."""
        return replace(self, offload=False) if self.offload and device.type == "cpu" else self

    @property
    def unrecordable(self) -> str:
        """A graph of a device's kernels has no place for the CPU's memory."""
        return f"gradient={self} copies what it keeps to the CPU and back" * self.offload

    def held_steps(self, steps: int) -> int:
        """Where the segments begin, and the steps of one segment; or the step at hand alone."""
        if self.offload:
            return min(steps, 2)  # θ takes no memory, so that two steps are one copy
        return self._kept_steps(steps)

    def steps_away(self, steps: int) -> int:
        """How many carries wait on the CPU at the same time."""
        return self._kept_steps(steps) - 1 if self.offload else 0

    def _kept_steps(self, steps: int) -> int:
        """Of how many steps there is a carry at the same time."""
        if self.segments is None:
            return steps
        count = max(1, min(self.segments, steps))
        return min(steps, count + math.ceil(steps / count) - 1)

    def holding_all(self) -> AdjointScan:
        """The same method without segments: it keeps every step, where the model is."""
        return replace(self, segments=None, offload=False)

    @abstractmethod
    def step_back(
        self, loop: Loop, step: int, carry: Carry, meta: Meta, cotangent: Any
    ) -> tuple[Any, MetaGradient]:
        """The cotangent of `carry`, and what the step adds to the meta-gradient."""

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """Run the loop once forward without graphs, then the adjoint scan."""
        meta = detached(meta)
        with torch.no_grad():
            segments = self._segments(loop.steps)
            starts = {begin for begin, _ in segments}
            kept: dict[int, Any] = {}
            carry = loop.start(meta)
            for step in range(loop.steps):
                if step in starts:
                    kept[step] = self._put(carry)
                carry = loop.step(step, carry, meta, create_graph=False)
            cotangent, gradient, query = query_back(loop, loop.steps, carry, meta)
            queries = [query]
            del carry
            for begin, end in reversed(segments):
                for step, carry in self._backwards(loop, begin, end, kept.pop(begin), meta):
                    cotangent, own = self.step_back(loop, step, carry, meta, cotangent)
                    gradient = add(gradient, own)
                    if step > 0 and loop.observed(step):
                        direct, own, query = query_back(loop, step, carry, meta)
                        cotangent, gradient = add(cotangent, direct), add(gradient, own)
                        queries.append(query)
                    del carry  # else it stays while the step before is fetched or run again
            gradient = add(gradient, start_back(loop, meta, cotangent))
        return gradient, queries[::-1]

    def _segments(self, steps: int) -> list[tuple[int, int]]:
        """The first step of every segment, and the one after its last."""
        count = min(self.segments or steps, steps)
        return [(steps * i // count, steps * (i + 1) // count) for i in range(count)]

    def _put(self, carry: Carry) -> Any:
        """The carry, as it is kept until its turn comes; `back` undoes it."""
        return away(carry) if self.offload else carry

    def _backwards(self, loop: Loop, begin: int, end: int, kept: Any, meta: Meta) -> Any:
        """(step, carry) from end - 1 down to begin, each carry let go as soon as it was used."""
        waiting, carry = [kept], None
        for step in range(begin, end - 1):
            carry = loop.step(step, carry or back(kept), meta, create_graph=False)
            waiting.append(self._put(carry))
        del kept, carry
        for step in reversed(range(begin, end)):
            yield step, back(waiting.pop())


def query_back(loop: Loop, step: int, carry: Carry, meta: Meta) -> tuple[Any, MetaGradient, Query]:
    """The query loss at `carry`: its cotangent, its direct part of the meta-gradient, itself."""
    with torch.enable_grad():
        parameters, shared = leaves_of(carry.parameters), leaves_of(meta.shared)
        query = loop.query(step, parameters, shared)
        to_parameters, to_shared = pull_back(
            query.value, torch.ones_like(query.value), (parameters, shared)
        )
    nothing = tree_map(lambda _: None, carry.state)
    gradient = MetaGradient(dict.fromkeys(meta.adapted), to_shared, dict.fromkeys(meta.rates))
    return Carry(to_parameters, nothing), gradient, query.detach()


def start_back(loop: Loop, meta: Meta, cotangent: Any) -> MetaGradient:
    """What arrives at θ: the sum over tasks."""
    with torch.enable_grad():
        meta = leaves_of(meta)
        return MetaGradient(*pull_back(loop.start(meta), cotangent, meta))
