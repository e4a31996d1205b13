"""Reptile: the way that adaptation went, in place of a meta-gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fastmaml.gradients.base import (
    Cotangents,
    GradientMethod,
    Loop,
    Meta,
    MetaGradient,
    Query,
    detached,
)


@final
@dataclass(frozen=True)
class Reptile(GradientMethod):
    """Approximate: the mean over tasks of θ − θ_K (Nichol et al., 2018).

    With plain SGD of rate ε outside, this is the paper's θ ← θ + ε·mean(θ_K − θ). The query set is
    evaluated and reported, but does not enter; give `support` the examples to learn from. It is not
    the gradient of the query loss: with several steps it points from θ towards the tasks' optima.
    Only parameters that adapt move, and learned rates get nothing, so both are refused. Time: 1
    gradient a step; memory does not grow with steps.

    Raises:
        ValueError: when a `MAML` is made with it whose scope is not "all", or whose rule learns.
    """

    exact: ClassVar[bool] = False
    adapted_only: ClassVar[bool] = True
    rows_suffice: ClassVar[bool] = False

    def differentiates(self, step: int, steps: int) -> bool:
        """No step is: no derivative of the loop is taken at all."""
        return False

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """Adapt without graphs; then one difference."""
        if meta.shared or meta.rates:
            raise ValueError(
                "Reptile moves only what the inner loop adapts, so these meta-parameters would "
                f"never learn: {', '.join([*meta.shared, *meta.rates][:5])}. Use scope='all' and "
                "a rule without learned rates, or freeze them (requires_grad_(False)), or use "
                "FirstOrder."
            )
        meta = detached(meta)
        with torch.no_grad():
            carry = loop.start(meta)
            for step in range(loop.steps):
                carry = loop.step(step, carry, meta, create_graph=False)
            query = loop.query(loop.steps, carry.parameters, meta.shared)
            moved: Cotangents = {
                name: loop.weighted_sum(p - carry.parameters[name])
                for name, p in meta.adapted.items()
            }
        return MetaGradient(moved, {}, {}), [query.detach()]
