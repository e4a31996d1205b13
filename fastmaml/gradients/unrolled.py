"""Differentiating through the recorded inner loop: all of it, its last steps, or no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fastmaml.gradients.base import (
    GradientMethod,
    Loop,
    Meta,
    MetaGradient,
    Query,
    leaves_of,
    pull_back,
)


@dataclass(frozen=True)
class _Recorded(GradientMethod):
    """One autograd graph through the whole loop; a step's inner gradient may be held constant."""

    one_graph: ClassVar[bool] = True

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """Run the loop with autograd recording, then go back once."""
        with torch.enable_grad():
            meta = leaves_of(meta)
            carry = loop.start(meta)
            queries = [loop.query(0, carry.parameters, meta.shared)] if loop.observed(0) else []
            for step in range(loop.steps):
                second_order = self.differentiates(step, loop.steps)
                carry = loop.step(step, carry, meta, create_graph=second_order)
                if loop.observed(step + 1):
                    queries.append(loop.query(step + 1, carry.parameters, meta.shared))
            values = [query.value for query in queries]
            back = pull_back(values, [torch.ones_like(v) for v in values], meta)
        return MetaGradient(*back), [query.detach() for query in queries]


@final
@dataclass(frozen=True)
class Unrolled(_Recorded):
    """Exact: backpropagation through every inner step (Finn et al., 2017).

    Time: about 3 gradients a step. Memory: every step keeps its second-order graph, so it grows
    with steps times activations; this is what runs out in other libraries. The fastest exact
    method where it fits; for many steps or large models, `Checkpointed` or `MixedMode`.
    """


@final
@dataclass(frozen=True)
class Truncated(_Recorded):
    """Approximate: only the last `last` inner steps are differentiated (Shaban et al., 2019).

    Earlier steps' gradients count as constants, so their Hessian terms are missing: the error
    shrinks as `last` grows, and is none at ``last >= steps``. Memory: `last` second-order graphs.

    Args:
        last: how many steps, counted from the end, at least 0 (0 is `FirstOrder`).

    Raises:
        ValueError: last is no such number.
    """

    last: int
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (isinstance(self.last, int) and self.last >= 0):
            raise ValueError(f"Truncated(last={self.last!r}): give a number of steps, at least 0.")

    def differentiates(self, step: int, steps: int) -> bool:
        """Whether it is one of the last steps."""
        return step >= steps - self.last

    def held_steps(self, steps: int) -> int:
        """The last steps, and where they begin."""
        return min(steps, self.last + 1)


@final
@dataclass(frozen=True)
class FirstOrder(_Recorded):
    """Approximate: inner gradients are constants, so no second derivative is taken (FOMAML).

    The meta-gradient is then the query gradient at the adapted parameters, carried back through
    the updates alone (learned rates still get theirs). The error is every Hessian term: of the
    order of lr·steps·curvature. Time: 1 gradient a step; memory does not grow with the
    steps' activations. Finn et al., 2017, section 5.2.
    """

    exact: ClassVar[bool] = False

    def differentiates(self, step: int, steps: int) -> bool:
        """False: every step's inner gradient is a constant."""
        return False
