"""The meta-step: a pure function of (parameters, buffers, episodes, randomness)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.routing.row_tables import RowTable
from fastmaml.engine.step.careful import careful
from fastmaml.engine.step.forward import TaskForward
from fastmaml.engine.step.head_layer import HeadLayer
from fastmaml.engine.step.inner_loop import InnerLoop, Objective
from fastmaml.engine.step.shared_passes import SharedPasses
from fastmaml.engine.step.user_function import TaskFunction
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import FirstOrder
from fastmaml.gradients.base import GradientMethod, Meta, MetaGradient, Query, add, detached
from fastmaml.rules.base import Rule, Tensors


@dataclass(frozen=True)
class Program:
    """Everything about a meta-step that is not a tensor argument.

    Attributes:
        forward: model and loss.
        rule: how parameters move.
        gradient: how the inner loop is differentiated.
        steps: the number of inner steps.
        chunk: how many tasks run at a time.
        repeatable: whether it gives the same numbers when it runs again.
        depends: what it depends on besides its arguments, as far as that is known.
        call: of the user's, see `Inventory`.
        head: a layer of which every task has its own; its parameters are among ``forward.frozen``.
        tables: embeddings that adapt in the rows that a task looks up.
        function: runs in place of the inner loop, where the user wrote one.
        unreached: about a trainable tensor that would get no meta-gradient.
        uncertain: whether what was seen when it was planned may not be all (see `careful`).
    """

    forward: TaskForward
    rule: Rule
    gradient: GradientMethod
    steps: int
    chunk: int
    repeatable: bool = True
    depends: Dependencies = field(default_factory=Dependencies)
    call: Any = None
    head: HeadLayer | None = None
    tables: tuple[RowTable, ...] = ()
    function: TaskFunction | None = None
    unreached: str = ""
    uncertain: bool = False

    def watched(self, sight: Sight) -> None:
        """Depend on what was seen to run, too."""
        model, inner = self.forward.model, self.function
        own = None if inner is None else inner.function
        roots = (model, self.forward.loss, self.rule, self.gradient, self.head, own)
        self.depends.add(sight, roots, (*model.parameters(), *model.buffers()))


class MetaResult(NamedTuple):
    """What a meta-step gives, all of it detached."""

    losses: Tensor
    """``[tasks]``: each task's share of the objective, before its weight."""
    outputs: Any
    """A tree of ``[tasks, ...]``: the model's query outputs after the last step."""
    gradient: MetaGradient
    """The meta-gradient; None where it does not reach."""
    buffers: Tensors
    """``[tasks, *shape]``: the buffers as the query pass left them, where they are kept."""


Executor = Callable[..., MetaResult]
"""Takes the arguments of `meta_step`."""


def meta_step(
    program: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    weights: Tensor,
    step_weights: Sequence[float],
    cotangents: Any = None,
) -> MetaResult:
    """Adapt every task, evaluate its query set, and differentiate through both.

    The objective is the sum over tasks of ``weights`` times the query losses, each weighted by
    `step_weights` over the inner steps, plus the inner product of `cotangents` with the outputs.

    Args:
        program: what runs.
        meta: meta-parameters; none of them is changed.
        episodes: the meta-batch.
        seeds: ``[tasks]`` int64; the result depends on them where the model draws at random.
        weights: ``[tasks]``.
        step_weights: one number for each of 0, 1, ..., steps.
        cotangents: one for each leaf of the outputs, None for zero.
    """
    parts = []
    program.depends.unreached = ""
    gradient = MetaGradient(*(dict.fromkeys(part) for part in meta))
    for chunk in _chunks(len(seeds), program.chunk):
        part = None if cotangents is None else tree_map_only(Tensor, _slicer(chunk), cotangents)
        objective = Objective(weights[chunk], step_weights, part)
        method = program.function or program.gradient
        with careful(program, meta, episodes[chunk]) as (given, batch):
            loop = inner_loop(program, batch, seeds[chunk], objective)
            own, queries = method.meta_gradient(loop, given)
        gradient = add(gradient, own)
        parts.append((_losses(queries, step_weights), queries[-1].outputs, loop.buffers))
    losses, outputs, buffers = concatenate(parts)
    return MetaResult(losses, outputs, gradient, buffers)


def adapt(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> Tensors:
    """The adapted parameters ``[tasks, *shape]``, no graphs."""
    objective = Objective(torch.ones_like(seeds), [0.0] * (program.steps + 1))
    program = replace(program, tables=(), gradient=FirstOrder())  # whole parameters are wanted
    with torch.no_grad(), careful(program, meta, episodes) as (meta, episodes):
        loop = inner_loop(program, episodes, seeds, objective)
        carry = loop.start(detached(meta))
        for step in range(program.steps):
            carry = loop.step(step, carry, meta, create_graph=False)
    return carry.parameters


def inner_loop(
    program: Program, episodes: Episodes, seeds: Tensor, objective: Objective
) -> InnerLoop:
    """The loop of one chunk; a chunk of one task runs plainly, whatever the program says."""
    batched = program.forward.batched and len(seeds) > 1
    forward = replace(program.forward, batched=batched)
    shares = program.repeatable and program.gradient.steps_once
    return InnerLoop(
        forward, program.rule, program.steps, episodes, seeds, objective, head=program.head,
        rows={table.name: table.rows(episodes) for table in program.tables},
        passes=SharedPasses() if shares else None,
    )  # fmt: skip


def concatenate(parts: Sequence[Any]) -> Any:
    """Trees of ``[chunk, ...]`` joined along the tasks."""
    if len(parts) == 1:
        return parts[0]
    return tree_map(lambda *xs: torch.cat(xs) if isinstance(xs[0], Tensor) else xs[0], *parts)


def _losses(queries: Sequence[Query], step_weights: Sequence[float]) -> Tensor:
    total = queries[0].losses * step_weights[queries[0].step]
    for query in queries[1:]:
        total = total + query.losses * step_weights[query.step]
    return total


def _chunks(tasks: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, tasks)) for i in range(0, tasks, size))


def _slicer(chunk: slice) -> Any:
    return lambda x: x[chunk]


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
