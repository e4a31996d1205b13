"""What a meta-step runs, on what, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.routing.row_tables import RowTable
from fastmaml.engine.step.data import TaskData
from fastmaml.engine.step.forward import TaskForward
from fastmaml.engine.step.head_layer import HeadLayer
from fastmaml.engine.step.inner_loop import InnerLoop, Objective
from fastmaml.engine.step.shared_passes import SharedPasses
from fastmaml.gradients.base import GradientMethod, Meta, MetaGradient
from fastmaml.rules.base import Rule, Tensors


@dataclass(frozen=True)
class Program:
    """Everything about a meta-step that is not a tensor argument.

    Attributes:
        forward: model and loss.
        rule: how parameters move.
        method: what is differentiated and how: the inner loop's gradient method, or the user's own
            function of a task.
        steps: the number of inner steps.
        chunk: how many tasks run at a time.
        repeatable: whether it gives the same numbers when it runs again.
        depends: what it depends on besides its arguments, as far as that is known.
        head: a layer of which every task has its own; its parameters are among ``forward.frozen``.
        tables: embeddings that adapt in the rows that a task looks up.
        unreached: about a trainable tensor that would get no meta-gradient.
        uncertain: whether what was seen when it was planned may not be all (see `careful`).
        sizes: whether it was seen with data of other sizes ("vary"), and the code does with these
            what it did with those ("known").
    """

    forward: TaskForward
    rule: Rule
    method: GradientMethod
    steps: int
    chunk: int
    repeatable: bool = True
    depends: Dependencies = field(default_factory=Dependencies)
    head: HeadLayer | None = None
    tables: tuple[RowTable, ...] = ()
    unreached: str = ""
    uncertain: bool = False
    sizes: Literal["", "vary", "known"] = ""

    def watched(self, sight: Sight) -> None:
        """Depend on what was seen to run, too."""
        model = self.forward.model
        roots = (model, *self.forward.losses, self.rule, self.method.code, self.head)
        self.depends.add(sight, roots, (*model.parameters(), *model.buffers()))


@final
@dataclass
class Known:
    """What the stages of a meta-step find out once for all that differ in nothing but numbers.

    Attributes:
        program: before anything is planned.
        meta: the meta-parameters.
        weights: ``[tasks]``, all tasks alike.
        key: the gradient method that was asked for last, and the plan's key with it.
        plan: that was applied last.
        applied: the program with it.
        specs: the trees of the arguments of `applied` (`FlatCall`), without cotangents.
    """

    program: Program
    meta: Meta
    weights: Tensor
    key: tuple[Any, Any] | None = None
    plan: Any = None
    applied: Program | None = None
    specs: tuple[Any, Any] | None = None


class Call(NamedTuple):
    """A meta-step: a program and all its arguments. Nothing of it is changed by running it.

    The objective is the sum over tasks of `weights` times the query losses, each weighted by
    `step_weights` over the inner steps, plus the inner product of `cotangents` with the outputs.
    """

    program: Program
    meta: Meta
    """The meta-parameters."""
    data: TaskData
    """The meta-batch."""
    seeds: Tensor
    """``[tasks]`` int64; the result depends on them where the model draws at random."""
    weights: Tensor
    """``[tasks]``."""
    step_weights: Sequence[float | Tensor]
    """One number for each of 0, 1, ..., steps; see `Objective`."""
    cotangents: Any = None
    """One for each leaf of the outputs, None for zero."""
    users: object = None
    """The user's call, see `Inventory`."""
    known: Known | None = None

    def by(self, **changes: Any) -> Call:
        """The same of a program with other attributes."""
        return self._replace(program=replace(self.program, **changes))

    def part(self, begin: int, end: int) -> Call:
        """The same of these tasks."""
        if (begin, end) == (0, len(self.seeds)):
            return self
        own = slice(begin, end)
        given = self.cotangents
        return self._replace(
            data=self.data[own],
            seeds=self.seeds[own],
            weights=self.weights[own],
            cotangents=None if given is None else tree_map_only(Tensor, lambda x: x[own], given),
        )

    def parts(self, size: int) -> Iterator[Call]:
        """In chunks of so many tasks."""
        tasks = len(self.seeds)
        return (self.part(i, min(i + size, tasks)) for i in range(0, tasks, size))

    def tried(self, tasks: int, every_step: bool = False) -> Call:
        """The first tasks, each with a weight of 1; the last query loss counts, or that of each."""
        found, steps = self.part(0, min(tasks, len(self.seeds))), self.program.steps
        weights = torch.ones(len(found.seeds), device=self.seeds.device)
        by_step: Sequence[float | Tensor] = [1.0 if every_step else 0.0] * steps + [1.0]
        return found._replace(weights=weights, step_weights=by_step, cotangents=None)

    def loop(self) -> InnerLoop:
        """The inner loop; a chunk of one task runs plainly, whatever the program says."""
        program = self.program
        batched = program.forward.batched and len(self.seeds) > 1
        shares = program.repeatable and program.method.steps_once
        return InnerLoop(
            replace(program.forward, batched=batched),
            program.rule,
            program.steps,
            self.data,
            self.seeds,
            Objective(self.weights, self.step_weights, self.cotangents),
            head=program.head,
            rows={table.name: table.rows(self.data) for table in program.tables},
            passes=SharedPasses() if shares else None,
        )


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


Executor = Callable[[Call], MetaResult]
"""Runs a meta-step; the eager one is `meta_step`."""


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
