"""Adaptation without a meta-gradient, as a meta-step: executors then run it as they run others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fastmaml.engine.step.program import Call
from fastmaml.gradients.base import GradientMethod, Loop, Meta, MetaGradient, Query, detached


@final
@dataclass(frozen=True)
class Adaptation(GradientMethod):
    """No derivatives but inner gradients: the query losses and outputs after some inner steps.

    They are the outputs ``[(losses, outputs), ...]`` of its only query.

    Attributes:
        at: after which numbers of steps, in their order; empty: after the last, as a plain query.
    """

    at: tuple[int, ...] = ()
    exact: ClassVar[bool] = False
    differentiates_query: ClassVar[bool] = False

    def differentiates(self, step: int, steps: int) -> bool:
        """False: nothing need have a second derivative."""
        return False

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """No gradients (None for each), and the queries after the steps in `at`."""
        with torch.no_grad():
            meta = detached(meta)
            carry, found = loop.start(meta), []
            for step in range(loop.steps + 1):
                if step in (self.at or (loop.steps,)):
                    query = loop.query(step, carry.parameters, meta.shared)
                    found.append((query.losses, query.outputs))
                if step < loop.steps:
                    carry = loop.step(step, carry, meta, create_graph=False)
        nothing = MetaGradient(*(dict.fromkeys(part) for part in meta))
        return nothing, [query._replace(outputs=found) if self.at else query]


EVALUATION = Adaptation()
"""For which calls without a meta-gradient are planned, whatever steps they are evaluated after."""


def adaptation(call: Call, at: Sequence[int]) -> Call:
    """The call whose outputs are losses ``[tasks]`` and outputs after each number of steps in `at`.

    Args:
        call: its gradient method does not matter.
        at: increasing; the last is the program's number of inner steps.
    """
    return call.by(method=Adaptation(tuple(at)))
