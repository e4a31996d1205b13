"""Choosing how a meta-step runs: batched or looped, in what chunks, with which gradient method."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fastmaml.engine.base.attempt import attempted
from fastmaml.engine.derivatives.graphs import check_differentiable_twice
from fastmaml.engine.derivatives.value_reads import ValueReads
from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.left_behind import LeftBehind
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.memory.available import free_bytes
from fastmaml.engine.memory.budget import Candidate, mib
from fastmaml.engine.memory.estimate import Estimator
from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.engine.memory.saved_bytes import kept_bytes, saved
from fastmaml.engine.planning.alternatives import check_method, explaining, naming
from fastmaml.engine.planning.plan import Asked, Plan
from fastmaml.engine.planning.scripted_functions import check_scripts
from fastmaml.engine.planning.table_search import about_tables, find_tables
from fastmaml.engine.planning.trials import batches, run, runs
from fastmaml.engine.routing.torch_regions import Regions
from fastmaml.engine.step.audit import Audit
from fastmaml.engine.step.careful import check_steps, drawing, watched
from fastmaml.engine.step.data import mapped
from fastmaml.engine.step.forward import TaskForward
from fastmaml.engine.step.inner_loop import support_sets
from fastmaml.engine.step.label_checks import class_counts
from fastmaml.engine.step.padding_checks import by_batch
from fastmaml.engine.step.program import Call, tensors_of
from fastmaml.engine.step.user_function import UserFunction
from fastmaml.gradients import Checkpointed, GradientMethod, Unrolled
from fastmaml.gradients.base import detached, leaves_of

CACHE_BYTES = 64 * 2**20
"""On the CPU a chunk's activations should stay near the last-level cache: for conv4 on Omniglot, 4
to 16 tasks at a time were faster than 1, and mostly than 32."""

LANE_BYTES = 4 * 2**20
"""The same for a chunk that has one core to itself, from its beginning to its end."""

SMALL_BYTES = 2**20
"""A meta-step that keeps less than this runs as one chunk: calls are its cost, not arithmetic."""


def make_plan(call: Call, asked: Asked) -> Plan:
    """Try the model on one and two tasks, watch what a meta-step needs, and decide.

    Args:
        call: a meta-step like those to come; how it runs is decided here.
        asked: what was decided before.

    Raises:
        MissingDerivative: the gradient method needs derivatives that PyTorch has not, or has wrong.
        Exception: whatever the model raises when it runs on one task in plain PyTorch.
    """
    tasks, steps, device = len(call.seeds), call.program.steps, call.seeds.device
    free = free_bytes(device) // 2 if asked.budget is None else asked.budget
    some = call.part(0, min(tasks, 2))
    some = some._replace(data=mapped(some.data, torch.clone))
    seen = min(steps, support_sets(some.data))  # a set of its own may make the model do otherwise
    some = some.by(chunk=1, method=asked.method or Unrolled(), steps=seen)
    one, outputs, backend_why, audit, sight = _tried(some, asked, explaining)
    values, depends = _value_reads(one), call.program.depends
    # Whoever reads values may take another way the next time, on which a table is used otherwise.
    tables = () if values.seen else find_tables(one)
    depends.settle(first=True)
    _reads_left_behind(one)
    drew = _unrepeatable(audit.drew(), depends)
    tables = () if drew or depends.unguardable or depends.scripted else tables
    if not drew:
        check_method(one, values.numbers)
    one = one.by(tables=tables, repeatable=not drew)
    kept = kept_bytes(one)
    size = chunk_size(tasks, asked, sum(kept), device, free)

    some = some._replace(program=one.program)
    estimator = Estimator(some, tasks, steps, asked.lanes)
    # Where nothing is learned, memory decides of nothing but how many tasks run at a time.
    learns = one.program.method.differentiates_query
    watch = learns or asked.chunk is None
    small = partial(estimator.sample, chunk=size) if watch else None
    alone, refusal, why, found = one.program, "", "", None
    if size > 1:  # a chunk of one task runs plainly
        alone, refusal, why, found = batches(some, asked, sight, values.shapes, small)
    depends.settle()
    if depends.restless and not drew:  # it takes more runs to see that
        drew = _unrepeatable(False, depends)
        alone = replace(alone, tables=(), repeatable=False)
    forward = replace(alone.forward, batched=not refusal)
    ready = replace(alone, forward=forward, chunk=1 if refusal else size)
    watch = learns or (watch and ready.chunk > 1)
    candidate = Candidate.of(estimator, ready, kept, found, watch)
    method, method_why = _method(asked.method, candidate.peak_first, free, drew)
    candidate = candidate.under(method)
    candidate = candidate.within(free) if asked.chunk is None else candidate
    size, backend = candidate.program.chunk, alone.forward.backend
    return Plan(
        gradient=method,
        chunk=size,
        batched=not refusal,
        repeatable=not drew,
        own_statistics=forward.own_statistics,
        classes=class_counts(forward.losses, outputs, one.data),
        normalises=by_batch(forward.model, forward.own_statistics),
        bytes_step=kept[0],
        bytes_query=kept[1],
        bytes_estimate=candidate.peak,
        bytes_first=candidate.peak_first,
        bytes_budget=free,
        law=candidate.law,
        backend=backend,
        reasons=(
            about_tasks(size, tasks, asked, refusal, candidate.estimator.lanes)
            + _about_size(candidate, ready.chunk, asked, refusal),
            candidate.about(),
            method_why,
            *_about_offload(one, candidate),
            *_about_losses(forward),
            *_about_sharing(call, method, bool(drew)),
            f"backend: {backend}{' (PyTorch)' * (backend == 'reference')}{backend_why or why}",
            *about_tables(call._replace(program=alone)),
            *([] if forward.host is None else forward.host.notes()),
            *_about_regions(forward.regions),
        ),
        tables=alone.tables,
        unreached=audit.unreached(),
        depends=depends,
        restless=depends.restless,
        uncertain=bool(values.seen or drew),
        refusal=refusal,
        regions=forward.regions,
    )


def plan_function(call: Call, asked: Asked) -> Plan:
    """The same for a user's own function of a task, which is differentiated as it stands.

    Raises:
        MissingDerivative: PyTorch has none of something that the function differentiates.
        Exception: whatever the function raises when it runs on one task in plain PyTorch.
    """
    tasks, device, function = len(call.seeds), call.seeds.device, call.program.method
    assert isinstance(function, UserFunction)
    some = call.part(0, min(tasks, 2))
    some = some._replace(data=mapped(some.data, torch.clone))
    one, _, backend_why, audit, sight = _tried(some, asked, lambda _: naming())
    values, depends = _value_reads(one), call.program.depends
    with LeftBehind(depends.left) as behind:
        some = some._replace(program=one.program)
        alone, refusal, why, _ = batches(some, asked, sight, values.shapes)
    depends.restless = behind.read
    depends.settle(first=True)
    loop = one._replace(program=alone).loop()
    with torch.enable_grad():
        leaves = leaves_of(call.meta)
        calls: list[int] = []
        query, kept = saved(lambda: function.query(loop, leaves, calls), set())
        check_differentiable_twice([query.value], lambda: [query.value])
        # Of one step and the query pass, as elsewhere; where nothing is learned, of one pass.
    kept = (1 + function.learns) * kept // max(calls[0], 1)
    free = free_bytes(device) // 2 if asked.budget is None else asked.budget
    size = 1 if refusal else chunk_size(tasks, asked, kept, device, free)
    sums = sum(x.nbytes for x in tensors_of(call.meta))
    law = MemoryLaw(2 * sums, kept, 0)
    peak = law.peak(min(tasks, size * max(asked.lanes, 1)), 1)
    backend = alone.forward.backend
    return Plan(
        gradient=function,
        chunk=size,
        batched=not refusal,
        repeatable=True,
        own_statistics=alone.forward.own_statistics,
        classes=(None, None),
        bytes_step=kept // 2,
        bytes_query=kept // 2,
        bytes_estimate=peak,
        bytes_first=peak,
        bytes_budget=free,
        law=law,
        backend=backend,
        reasons=(
            about_tasks(size, tasks, asked, refusal, asked.lanes),
            f"memory: about {mib(peak)}, guessed from what autograd keeps",
            "gradient: of the function as it is written",
            f"backend: {backend}{' (PyTorch)' * (backend == 'reference')}{backend_why or why}",
            *_about_regions(alone.forward.regions),
        ),
        unreached=audit.unreached(),
        depends=depends,
        restless=depends.restless,
        uncertain=bool(values.seen or audit.drew()),
        refusal=refusal,
        regions=alone.forward.regions,
    )


def _tried(
    some: Call, asked: Asked, naming: Callable[[Call], AbstractContextManager[None]]
) -> tuple[Call, Any, str, Audit, Sight]:
    """One task after a first, watched run: its call, outputs, and why another backend."""
    one = some.part(0, 1)
    copied, audit = watched(one)
    regions = Regions()
    heard = replace(copied.program.forward, listen=lambda _: regions)
    with naming(one), audit, Sight() as sight:
        alone, outputs, why = runs(copied.by(forward=heard), asked.fixed_backend)
    forward = replace(alone.forward, listen=None, regions=regions.seen)
    alone = replace(alone, forward=forward)
    audit.check_unchanged()
    del copied
    some.program.watched(sight)
    one = one._replace(program=alone)
    check_scripts(one)
    return one, outputs, why, audit, sight


def chunk_size(tasks: int, asked: Asked, bytes_task: int, device: torch.device, free: int) -> int:
    """How many tasks to run at a time, where vmap can batch them."""
    if asked.chunk is not None:
        return min(asked.chunk, tasks)
    lanes = asked.lanes
    room, most = (CACHE_BYTES, tasks) if device.type == "cpu" else (free, tasks)
    if lanes and tasks * bytes_task > SMALL_BYTES:
        room, most = LANE_BYTES, math.ceil(tasks / lanes)
    fitting = max(1, min(most, room // max(bytes_task, 1)))
    return math.ceil(tasks / math.ceil(tasks / fitting))  # rather than a small rest at the end


def _value_reads(one: Call) -> ValueReads:
    """What reads values in another run, as PyTorch may take other ways where it is watched."""
    values = ValueReads()

    def read() -> None:
        with values:
            run(one)

    refusal, _ = attempted(read)
    values.numbers = values.numbers or refusal
    values.seen = values.seen or refusal
    return values


def _reads_left_behind(one: Call) -> None:
    """Note a tensor that one run leaves behind and the next one reads."""
    depends = one.program.depends
    if depends.left and not depends.restless:
        with LeftBehind(depends.left) as behind:
            run(one)
        depends.restless = behind.read


def _unrepeatable(drew: bool, depends: Dependencies) -> str:
    """Why running the model again may give other numbers; empty where it does not."""
    found = depends.restless
    return drawing(drew, f"{found}, which changes whenever it runs" if found else "")


def about_tasks(size: int, tasks: int, asked: Asked, refusal: str, lanes: int) -> str:
    """How many run at a time, and why."""
    if refusal:
        return f"tasks: one at a time, because vmap cannot batch this model: {refusal}"
    if tasks == 1:
        return "tasks: only one, which runs plainly"
    spread = f", {lanes} such chunks at the same time" * (lanes > 1 and size < tasks)
    obeyed = ", as asked" * bool(asked.chunk)
    batched = " under vmap" * (size > 1)
    return f"tasks: {size} of {tasks} at a time{batched}{obeyed}{spread}"


def _about_size(candidate: Candidate, planned: int, asked: Asked, refusal: str) -> str:
    """Why not all tasks run at a time; empty where they do, or that was said or asked for."""
    size, on_cpu = candidate.program.chunk, candidate.estimator.call.seeds.device.type == "cpu"
    if size == candidate.estimator.tasks or refusal or asked.chunk is not None:
        return ""
    if size < planned or not on_cpu:
        return ", as more would not fit into the memory that may be used"
    return (
        f", as a task keeps {mib(sum(candidate.kept))} for its derivatives, and a chunk should "
        "stay near the caches"
    )


def _about_losses(forward: TaskForward) -> list[str]:
    """A line, where the query set has a loss of its own."""
    if forward.query_loss is None:
        return []
    own, inner = (getattr(x, "__name__", type(x).__name__) for x in reversed(forward.losses))
    return [f"query loss: {own}; the inner steps descend {inner}"]


def _about_regions(regions: bool) -> list[str]:
    """A line, where the model uses `torch.utils.checkpoint`."""
    if not regions:
        return []
    return [
        "torch.utils.checkpoint: modules inside of it run again, by fastmaml itself; what it runs "
        "outside of modules is kept"
    ]


def _about_offload(one: Call, candidate: Candidate) -> list[str]:
    """A line, where the method keeps inner steps on the CPU, or would elsewhere."""
    method, steps = candidate.program.method, candidate.estimator.steps
    there = method.on(one.seeds.device)
    if there != method:
        return ["offload: nothing to do, as the model is on the CPU: it runs as " + repr(there)]
    away = method.steps_away(steps)
    if not away:
        return []
    start = tensors_of(tuple(one.loop().start(detached(one.meta))))
    size = sum(x.numel() * x.element_size() for x in start) * away
    size *= candidate.estimator.at_once(candidate.program.chunk)
    return [f"offload: {away} inner steps wait on the CPU, which takes {mib(size)} of its memory"]


def _about_sharing(call: Call, chosen: GradientMethod, drew: bool) -> list[str]:
    """A line, where only a part of the model adapts and there are several inner steps."""
    program, meta = call.program, call.meta
    own = () if program.head is None else program.head.names
    if program.steps < 2 or drew or not (meta.shared or program.forward.frozen.keys() - own):
        return []
    if support_sets(call.data) > 1:
        return ["support sets: each inner step has its own, and runs whole"]
    if chosen.steps_once:
        return [
            "support set: what no adapted parameter reaches runs once, not at every inner step "
            "(but what is random, checkpointed or written through views, and all after it)"
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
