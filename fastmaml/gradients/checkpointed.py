"""The adjoint scan with each step recorded again when its turn comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch

from fastmaml.gradients.adjoint import AdjointScan
from fastmaml.gradients.base import (
    Carry,
    Loop,
    Meta,
    MetaGradient,
    leaves_of,
    pull_back,
)


@final
@dataclass(frozen=True, repr=False)
class Checkpointed(AdjointScan):
    """Exact: each inner step is run again with its second-order graph, one step at a time.

    Time: about 4 gradients a step (5 with segments). Memory: one copy of what adapts a step (or a
    segment), and the second-order graph of one step. Needs nothing of the model but second
    derivatives. Not for a loop that fits as `Unrolled`, which takes a quarter less time.
    Gradient checkpointing (Chen et al., 2016) over the inner loop.

    Args:
        segments: how many parts of the loop to keep the start of; None keeps every step's. About
            √steps need the least memory, 2·√steps copies, for one more gradient a step.
        offload: keep them in the CPU's (pinned) memory, so that that of a GPU does not grow with
            the steps: it holds the step at hand. A step's copy goes out and comes back over the
            bus, and the meta-step runs eagerly, as no recording holds that: take it for steps
            that are long against their copy. With a model on the CPU it changes nothing.

    Raises:
        ValueError: segments is not positive, or offload no bool.
    """

    def step_back(
        self, loop: Loop, step: int, carry: Carry, meta: Meta, cotangent: Any
    ) -> tuple[Any, MetaGradient]:
        """Record the step, then the ordinary vector-Jacobian product (reverse over reverse)."""
        with torch.enable_grad():
            carry, meta = leaves_of(carry), leaves_of(meta)
            after = loop.step(step, carry, meta, create_graph=True)
            to_carry, to_meta = pull_back(after, cotangent, (carry, meta))
            return to_carry, MetaGradient(*to_meta)
