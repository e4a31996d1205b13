"""Adaptation without a meta-gradient, as a meta-step: executors then run it as they run others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.engine.step.meta_step import Executor, Program
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients.base import GradientMethod, Loop, Meta, MetaGradient, Query, detached


@final
@dataclass(frozen=True)
class Forward(GradientMethod):
    """No derivatives: the query losses and outputs after some numbers of inner steps.

    They are the outputs ``[(losses, outputs), ...]`` of its only query.

    Attributes:
        at: after which numbers of steps, in their order.
    """

    at: tuple[int, ...]

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """None for everything."""
        with torch.no_grad():
            meta = detached(meta)
            carry, found = loop.start(meta), []
            for step in range(loop.steps + 1):
                if step in self.at:
                    query = loop.query(step, carry.parameters, meta.shared)
                    found.append((query.losses, query.outputs))
                if step < loop.steps:
                    carry = loop.step(step, carry, meta, create_graph=False)
        nothing = MetaGradient(*(dict.fromkeys(part) for part in meta))
        return nothing, [query._replace(outputs=found)]


def evaluate(
    execute: Executor,
    program: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    at: Sequence[int],
) -> list[tuple[Tensor, Any]]:
    """Query losses ``[tasks]`` and outputs after each number of inner steps in `at`, no graphs.

    Args:
        execute: runs it.
        program: its gradient method does not matter.
        meta: the meta-parameters.
        episodes: the meta-batch.
        seeds: ``[tasks]``.
        at: increasing; the last is ``program.steps``.
    """
    program = replace(program, gradient=Forward(tuple(at)))
    weights = torch.ones(len(seeds), device=seeds.device)
    step_weights = [0.0] * program.steps + [1.0]
    found: list[tuple[Tensor, Any]] = execute(
        program, meta, episodes, seeds, weights, step_weights
    ).outputs
    return found
