"""Choosing how a meta-step runs: batched or looped, in what chunks, with which gradient method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import attempted
from fastmaml.engine.derivatives.graphs import check_differentiable_twice
from fastmaml.engine.derivatives.value_reads import ValueReads
from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.left_behind import LeftBehind
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.memory.available import free_bytes
from fastmaml.engine.memory.budget import Weighed, mib
from fastmaml.engine.memory.estimate import Estimator
from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.engine.memory.saved_bytes import kept_bytes, saved
from fastmaml.engine.planning.alternatives import check_method, explaining, naming
from fastmaml.engine.planning.scripted_functions import check_scripts
from fastmaml.engine.planning.table_search import about_tables, find_tables
from fastmaml.engine.planning.trials import batches, run, runs
from fastmaml.engine.routing.row_tables import RowTable
from fastmaml.engine.step.audit import Watch
from fastmaml.engine.step.careful import check_steps, cloned, copies, drawing
from fastmaml.engine.step.checks import class_count
from fastmaml.engine.step.inner_loop import Objective
from fastmaml.engine.step.meta_step import Program, inner_loop, tensors_of
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import Checkpointed, GradientMethod, Unrolled
from fastmaml.gradients.base import Meta, leaves_of

CACHE_BYTES = 64 * 2**20
"""On the CPU a chunk's activations should stay near the last-level cache: for conv4 on Omniglot, 4
to 16 tasks at a time were faster than 1, and mostly than 32."""

LANE_BYTES = 4 * 2**20
"""The same for a chunk that has one core to itself, from its beginning to its end."""

SMALL_BYTES = 2**20
"""A meta-step that keeps less than this runs as one chunk: calls are its cost, not arithmetic."""


@dataclass(frozen=True)
class Plan:
    """How a meta-step runs, and why.

    Attributes:
        gradient: how the inner loop is differentiated.
        backend: what runs the model's layers.
        chunk: how many tasks run at a time.
        batched: whether they run under vmap.
        repeatable: whether the model draws only random numbers that can be drawn again.
        classes: how many classes the labels may name, where that is known.
        bytes_step: measured bytes that one inner step of one task keeps for its derivatives.
        bytes_query: the same for the query pass.
        bytes_estimate: the estimated peak of the whole meta-step, beyond the model and the data.
        bytes_first: the same of the first call, which records it.
        bytes_budget: what the two were held against.
        law: how that peak grows with inner steps and with tasks at the same time.
        reasons: one line for every choice.
        tables: embeddings that adapt in the rows that a task looks up.
        unreached: about a trainable tensor that would get no meta-gradient; nothing if there is
            none.
        depends: what it holds for.
        restless: what of that changes whenever the model runs.
        uncertain: whether the code may do something else when it runs again.
    """

    gradient: GradientMethod
    backend: str
    chunk: int
    batched: bool
    repeatable: bool
    classes: int | None
    bytes_step: int
    bytes_query: int
    bytes_estimate: int
    bytes_first: int
    bytes_budget: int
    law: MemoryLaw
    reasons: tuple[str, ...]
    tables: tuple[RowTable, ...] = ()
    unreached: str = ""
    depends: Dependencies = field(default_factory=Dependencies)
    restless: str = ""
    uncertain: bool = False

    def __str__(self) -> str:
        return "\n".join(self.reasons)

    def worn_out(self) -> Plan | None:
        """See `Depending`."""
        if self.gradient.tried_once:
            return None
        return replace(self, tables=(), uncertain=True, depends=Dependencies.worn_out())

    def applied(self, program: Program) -> Program:
        """The program with what was decided."""
        forward = replace(program.forward, batched=self.batched, backend=self.backend)
        return replace(
            program,
            gradient=self.gradient,
            chunk=self.chunk,
            repeatable=self.repeatable,
            forward=forward,
            tables=self.tables,
            unreached=self.unreached,
            depends=self.depends,
            uncertain=self.uncertain,
        )


def make_plan(
    program: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    gradient: GradientMethod | None,
    chunk: int | None,
    budget: int | None,
    fixed_backend: bool = False,
    lanes: int = 0,
) -> Plan:
    """Try the model on one and two tasks, watch what a meta-step needs, and decide.

    Args:
        program: with the user's model and rule; its gradient, chunk and batching are decided here.
        meta: the meta-parameters.
        episodes: a meta-batch like those to come.
        seeds: its seeds.
        gradient: the method to use, or None to choose an exact one.
        chunk: the number of tasks to run at a time, or None to choose.
        budget: bytes that the meta-step may use, or None for half of what is free.
        fixed_backend: keep the program's backend even where another can batch the tasks.
        lanes: how many chunks run from recordings at the same time; 0 where none is recorded.

    Raises:
        MissingDerivative: the gradient method needs derivatives that PyTorch has not, or has wrong.
        Exception: whatever the model raises when it runs on one task in plain PyTorch.
    """
    tasks, steps = episodes.tasks, program.steps
    free = free_bytes(seeds.device) // 2 if budget is None else budget
    alone = replace(program, chunk=1, gradient=gradient or Unrolled(), steps=min(steps, 1))
    episodes = cloned(episodes[:2])
    copied, parameters = copies(program, meta)
    one = (meta, episodes[:1], seeds[:1])
    watch = Watch(episodes, seeds.device, _own(program, meta), parameters)
    with explaining(alone, *one), watch, Sight() as sight:
        alone, outputs, backend_why = runs(alone, copied, *one[1:], fixed_backend)
    watch.check_unchanged()
    del copied, parameters
    program.watched(sight)
    check_scripts(alone, *one)
    values = _value_reads(alone, *one)
    # Whoever reads values may take another way the next time, on which a table is used otherwise.
    tables = () if values.seen else find_tables(alone, *one)
    program.depends.settle(first=True)
    _reads_left_behind(alone, program.depends, *one)
    drew = _unrepeatable(watch.drew(), program.depends)
    depends = program.depends
    tables = () if drew or depends.unguardable or depends.scripted else tables
    if not drew:
        check_method(alone, *one, values.numbers)
    alone = replace(alone, tables=tables, repeatable=not drew)
    kept = kept_bytes(alone, *one)
    size = _chunk(tasks, chunk, sum(kept), seeds.device, free, lanes)

    estimator = Estimator(meta, episodes, seeds[:2], tasks, steps, lanes)
    watched = partial(estimator.sample, chunk=size) if size > 1 else None
    alone, refusal, why, found = batches(
        alone, meta, episodes, seeds[:2], fixed_backend, sight, values.shapes, lanes > 0, watched
    )
    program.depends.settle()
    restless = program.depends.restless
    if restless and not drew:  # it takes more runs to see that
        drew, alone = (
            _unrepeatable(False, program.depends),
            replace(alone, tables=(), repeatable=False),
        )
    backend, backend_why = alone.forward.backend, backend_why or why
    forward = replace(alone.forward, batched=not refusal)
    ready = replace(alone, forward=forward, chunk=1 if refusal else size)
    weighed = Weighed.of(estimator, ready, kept, found)
    chosen, gradient_why = _method(gradient, weighed.peak_first, free, drew)
    weighed = weighed.under(chosen)
    weighed = weighed.within(free) if chunk is None else weighed
    size = weighed.program.chunk
    return Plan(
        gradient=chosen,
        chunk=size,
        batched=not refusal,
        repeatable=not drew,
        classes=class_count(program.forward.loss, outputs, episodes[:1].query.targets),
        bytes_step=kept[0],
        bytes_query=kept[1],
        bytes_estimate=weighed.peak,
        bytes_first=weighed.peak_first,
        bytes_budget=free,
        law=weighed.law,
        backend=backend,
        reasons=(
            _about_tasks(size, tasks, chunk, lanes, refusal),
            weighed.about(),
            gradient_why,
            *_about_sharing(program, meta, chosen, bool(drew)),
            f"backend: {backend}{' (PyTorch)' * (backend == 'reference')}{backend_why}",
            *about_tables(alone.tables, meta, episodes),
            *([] if program.forward.host is None else program.forward.host.notes()),
        ),
        tables=alone.tables,
        unreached=watch.unreached(),
        depends=program.depends,
        restless=restless,
        uncertain=bool(values.seen or drew),
    )


def plan_function(
    program: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    chunk: int | None,
    budget: int | None,
    fixed_backend: bool,
    lanes: int,
) -> tuple[Program, str]:
    """The program of a user's own function of a task, with how it runs decided, and why it loops.

    Raises:
        MissingDerivative: PyTorch has none of something that the function differentiates.
        Exception: whatever the function raises when it runs on one task in plain PyTorch.
    """
    episodes = cloned(episodes[:2])
    copied, parameters = copies(program, meta)
    watch = Watch(episodes, seeds.device, _own(program, meta), parameters)
    with naming(), watch, Sight() as sight:
        alone, _, _ = runs(program, copied, episodes[:1], seeds[:1], fixed_backend)
    watch.check_unchanged()
    del copied, parameters
    program.watched(sight)
    check_scripts(alone, meta, episodes[:1], seeds[:1])
    values = _value_reads(alone, meta, episodes[:1], seeds[:1])
    with LeftBehind(program.depends.left) as behind:
        alone, refusal, _, _ = batches(
            alone, meta, episodes, seeds[:2], fixed_backend, sight, values.shapes, lanes > 0
        )
    program.depends.restless = behind.read
    program.depends.settle(first=True)
    weights = torch.ones(1, device=seeds.device)
    loop = inner_loop(alone, episodes[:1], seeds[:1], Objective(weights, [0.0, 1.0]))
    function = alone.function
    assert function is not None
    with torch.enable_grad():
        leaves = leaves_of(meta)
        calls: list[int] = []
        query, kept = saved(lambda: function.query(loop, leaves, calls), set())
        check_differentiable_twice([query.value], lambda: [query.value])
        kept = 2 * kept // max(calls[0], 1)  # of one step and the query pass, as elsewhere
    free = free_bytes(seeds.device) // 2 if budget is None else budget
    size = _chunk(len(seeds), chunk, kept, seeds.device, free, lanes)
    size = 1 if refusal else size
    forward = replace(alone.forward, batched=not refusal)
    planned = replace(
        alone, forward=forward, chunk=size, unreached=watch.unreached(),
        uncertain=bool(values.seen or watch.drew()),
    )  # fmt: skip
    return planned, refusal


def _own(program: Program, meta: Meta) -> list[Tensor]:
    """What may be trainable: a task's own head is, and has no meta-gradient."""
    return [*tensors_of(tuple(meta)), *program.forward.frozen.values()]


def _chunk(
    tasks: int, asked: int | None, bytes_task: int, device: torch.device, free: int, lanes: int
) -> int:
    """How many tasks to run at a time, where vmap can batch them."""
    if asked is not None:
        return min(asked, tasks)
    room, most = (CACHE_BYTES, tasks) if device.type == "cpu" else (free, tasks)
    if lanes and tasks * bytes_task > SMALL_BYTES:
        room, most = LANE_BYTES, math.ceil(tasks / lanes)
    fitting = max(1, min(most, room // max(bytes_task, 1)))
    return math.ceil(tasks / math.ceil(tasks / fitting))  # rather than a small rest at the end


def _value_reads(alone: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> ValueReads:
    """What reads values in another run, as PyTorch may take other ways where it is watched."""
    values = ValueReads()

    def watched() -> None:
        with values:
            run(alone, meta, episodes, seeds)

    refusal, _ = attempted(watched)
    values.numbers = values.numbers or refusal
    values.seen = values.seen or refusal
    return values


def _reads_left_behind(
    alone: Program, depends: Dependencies, meta: Meta, episodes: Episodes, seeds: Tensor
) -> None:
    """Note a tensor that one run leaves behind and the next one reads."""
    if depends.left and not depends.restless:
        with LeftBehind(depends.left) as behind:
            run(alone, meta, episodes, seeds)
        depends.restless = behind.read


def _unrepeatable(drew: bool, depends: Dependencies) -> str:
    """Why running the model again may give other numbers; empty where it does not."""
    found = depends.restless
    return drawing(drew, f"{found}, which changes whenever it runs" if found else "")


def _about_tasks(size: int, tasks: int, asked: int | None, lanes: int, refusal: str) -> str:
    """A line."""
    if refusal:
        return f"tasks: one at a time, because vmap cannot batch this model: {refusal}"
    if tasks == 1:
        return "tasks: only one, which runs plainly"
    spread = f", {lanes} such chunks at the same time" * (lanes > 1 and size < tasks)
    obeyed = ", as asked" * bool(asked)
    return f"tasks: {size} of {tasks} at a time under vmap{obeyed}{spread}"


def _about_sharing(program: Program, meta: Meta, chosen: GradientMethod, drew: bool) -> list[str]:
    """A line, where only a part of the model adapts and there are several inner steps."""
    own = () if program.head is None else program.head.names
    if program.steps < 2 or drew or not (meta.shared or program.forward.frozen.keys() - own):
        return []
    if chosen.steps_once:
        return [
            "support set: what no adapted parameter reaches runs once, not at every inner step "
            "(but what is random, written in place or checkpointed, and all after it)"
        ]
    return [
        "support set: every inner step runs whole, and again for its derivative; Unrolled() runs "
        "once what no adapted parameter reaches"
    ]


def _method(
    asked: GradientMethod | None, unrolled: int, free: int, drew: str
) -> tuple[GradientMethod, str]:
    """The gradient method, and why; `unrolled` is what the largest call would need of Unrolled."""
    if asked is not None and not asked.steps_once:
        check_steps(asked, drew)
    if asked is not None:
        return asked, f"gradient: {asked}, as asked"
    if drew:
        why = "as a method which runs steps again could not be right"
        return Unrolled(), f"gradient: Unrolled(), {why}: {drew}"
    if unrolled <= free:
        return Unrolled(), (
            f"gradient: Unrolled(), the fastest exact method, as the {mib(unrolled)} of its first "
            f"call fit in {mib(free)}"
        )
    return Checkpointed(), (
        f"gradient: Checkpointed(), because Unrolled() would need {mib(unrolled)} at its "
        f"first call, and {mib(free)} may be used"
    )
