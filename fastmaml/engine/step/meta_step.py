"""The meta-step: a pure function of (parameters, buffers, episodes, randomness)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmaml.engine.step.careful import careful
from fastmaml.engine.step.program import Call, MetaResult
from fastmaml.gradients import FirstOrder
from fastmaml.gradients.base import MetaGradient, Query, add, detached
from fastmaml.rules.base import Tensors


def meta_step(call: Call) -> MetaResult:
    """Adapt every task, evaluate its query set, and differentiate through both."""
    program, parts = call.program, []
    program.depends.unreached = ""
    gradient = MetaGradient(*(dict.fromkeys(part) for part in call.meta))
    for chunk in call.parts(program.chunk):
        with careful(chunk) as given:
            loop = given.loop()
            own, queries = program.method.meta_gradient(loop, given.meta)
        gradient = add(gradient, own)
        parts.append((_losses(queries, call.step_weights), queries[-1].outputs, loop.buffers))
    losses, outputs, buffers = concatenate(parts)
    return MetaResult(losses, outputs, gradient, buffers)


def adapt(call: Call) -> Tensors:
    """The adapted parameters ``[tasks, *shape]``, no graphs."""
    call = call.by(tables=(), method=FirstOrder())  # whole parameters are wanted
    with torch.no_grad(), careful(call) as given:
        loop, meta = given.loop(), given.meta
        carry = loop.start(detached(meta))
        for step in range(loop.steps):
            carry = loop.step(step, carry, meta, create_graph=False)
    return carry.parameters


def concatenate(parts: Sequence[Any]) -> Any:
    """Trees of ``[chunk, ...]`` joined along the tasks."""
    if len(parts) == 1:
        return parts[0]
    return tree_map(lambda *xs: torch.cat(xs) if isinstance(xs[0], Tensor) else xs[0], *parts)


def _losses(queries: Sequence[Query], step_weights: Sequence[float | Tensor]) -> Tensor:
    total = queries[0].losses * step_weights[queries[0].step]
    for query in queries[1:]:
        total = total + query.losses * step_weights[query.step]
    return total
