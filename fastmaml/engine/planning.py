"""Choosing how a meta-step runs: batched or looped, in what chunks, with which gradient method."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmaml.engine.diagnosis import class_count
from fastmaml.engine.inner_loop import Objective
from fastmaml.engine.meta_step import MetaResult, Program, inner_loop, meta_step, tensors_of
from fastmaml.engine.row_tables import RowTable
from fastmaml.engine.table_search import about_tables, find_tables
from fastmaml.engine.watching import Watch
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import Checkpointed, FirstOrder, GradientMethod, Reptile, Unrolled
from fastmaml.gradients.adjoint import AdjointScan
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
        bytes_budget: what the estimate was held against.
        reasons: one line for every choice.
        tables: embeddings that adapt in the rows that a task looks up.
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
    bytes_budget: int
    reasons: tuple[str, ...]
    tables: tuple[RowTable, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.reasons)

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
    """Try the model on one and two tasks, measure what a step keeps, and decide.

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
        Exception: whatever the model raises when it runs on one task in plain PyTorch.
    """
    tasks = episodes.tasks
    free = free_bytes(seeds.device) // 2 if budget is None else budget
    alone = replace(program, chunk=1, gradient=gradient or Unrolled(), steps=min(program.steps, 1))
    # On copies, so that a model which writes to its inputs does no harm before that is noticed.
    episodes = Episodes(*(b.map(torch.clone) for b in (episodes[:2].support, episodes[:2].query)))
    with Watch(episodes, seeds.device) as watch:
        alone, outputs, backend_why = _tried(alone, meta, episodes[:1], seeds[:1], fixed_backend)
    watch.check_inputs()
    drew = watch.drew()
    tables = find_tables(alone, meta, episodes[:1], seeds[:1])
    alone = replace(alone, tables=tables)
    alone, refusal, why = _batching(alone, meta, episodes[:2], seeds[:2], fixed_backend)
    backend, backend_why = alone.forward.backend, backend_why or why
    kept = _kept_bytes(alone, meta, episodes[:1], seeds[:1])

    size, tasks_why = _chunk(tasks, chunk, sum(kept), seeds.device, free, refusal, lanes)
    copy = _bytes_of_a_copy(alone, meta, episodes[:1], seeds[:1])
    at_once = min(tasks, size * max(lanes, 1))
    unrolled = at_once * (program.steps * (kept[0] + copy) + kept[1])
    scanned = at_once * (program.steps * copy + max(kept))
    chosen, gradient_why = _method(gradient, unrolled, free, drew)
    return Plan(
        gradient=chosen,
        chunk=size,
        batched=not refusal,
        repeatable=not drew,
        classes=class_count(program.forward.loss, outputs, episodes[:1].query.targets),
        bytes_step=kept[0],
        bytes_query=kept[1],
        bytes_estimate=unrolled if isinstance(chosen, Unrolled) else scanned,
        bytes_budget=free,
        backend=backend,
        reasons=(
            tasks_why,
            f"memory: one inner step of one task keeps {_mib(kept[0])} for its derivatives, the "
            f"query pass {_mib(kept[1])} (measured on the first task)",
            gradient_why,
            f"backend: {backend}{' (PyTorch)' * (backend == 'reference')}{backend_why}",
            *about_tables(tables, meta, episodes),
            *([] if program.forward.host is None else program.forward.host.notes()),
        ),
        tables=tables,
    )


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on the device."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    meminfo = Path("/proc/meminfo")
    available = re.search(
        r"MemAvailable:\s+(\d+) kB", meminfo.read_text() if meminfo.exists() else ""
    )
    # Where the operating system does not say, assume a small machine.
    return 1024 * int(available[1]) if available else 4 * 2**30


def _run(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> MetaResult:
    weights = torch.full((len(seeds),), 1.0, device=seeds.device)
    return meta_step(program, meta, episodes, seeds, weights, [0.0] * program.steps + [1.0])


def _batching(
    alone: Program, meta: Meta, episodes: Episodes, seeds: Tensor, fixed_backend: bool
) -> tuple[Program, str, str]:
    """The program on a backend that batches tasks, if one does; why none; why another backend."""
    if len(seeds) == 1:
        return alone, "", ""
    first = ""
    for program in (alone, _on_reference(alone)):
        forward = replace(program.forward, batched=True)
        refusal = _refusal(replace(program, chunk=2, forward=forward), meta, episodes, seeds)
        if not refusal:
            return (
                program,
                "",
                f", as {alone.forward.backend} cannot batch it: {first}" * bool(first),
            )
        first = first or refusal
        if fixed_backend or program.forward.backend == "reference":
            break
    return alone, first, ""


def _tried(
    program: Program, meta: Meta, episodes: Episodes, seeds: Tensor, fixed_backend: bool
) -> tuple[Program, Any, str]:
    """The program on a backend on which it runs, its outputs, and why another backend."""
    try:
        return program, _run(program, meta, episodes, seeds).outputs, ""
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if fixed_backend or program.forward.backend == "reference":
            raise
        why = f", as {program.forward.backend} cannot run it: {_in_a_line(error)}"
    # Plain PyTorch then runs it, or raises what is wrong with it in its own words.
    program = _on_reference(program)
    return program, _run(program, meta, episodes, seeds).outputs, why


def _bytes_of_a_copy(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> int:
    """Of what one task adapts."""
    loop = inner_loop(program, episodes, seeds, Objective(torch.ones_like(seeds), [1.0]))
    with torch.no_grad():
        parameters = loop.start(meta).parameters
    return sum(p.numel() * p.element_size() for p in parameters.values())


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
        Exception: whatever the function raises when it runs on one task in plain PyTorch.
    """
    alone, _, _ = _tried(program, meta, episodes[:1], seeds[:1], fixed_backend)
    alone, refusal, _ = _batching(alone, meta, episodes[:2], seeds[:2], fixed_backend)
    weights = torch.ones(1, device=seeds.device)
    loop = inner_loop(alone, episodes[:1], seeds[:1], Objective(weights, [0.0, 1.0]))
    function = alone.function
    assert function is not None
    with torch.enable_grad():
        leaves = leaves_of(meta)
        calls: list[int] = []
        kept = _saved(lambda: function.query(loop, leaves, calls), set())
        kept = 2 * kept // max(calls[0], 1)  # of one step and the query pass, as elsewhere
    free = free_bytes(seeds.device) // 2 if budget is None else budget
    size, _ = _chunk(len(seeds), chunk, kept, seeds.device, free, refusal, lanes)
    forward = replace(alone.forward, batched=not refusal)
    return replace(alone, forward=forward, chunk=size), refusal


def _on_reference(program: Program) -> Program:
    return replace(program, forward=replace(program.forward, backend="reference"))


def _refusal(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> str:
    """Why the program cannot run, in a line; empty if it can.

    Called only for what was just seen to run on one task, so whatever is raised here is the
    transform's refusal and no error of the user's: it is reported by `MAML.explain`.
    """
    try:
        _run(program, meta, episodes, seeds)
    except torch.OutOfMemoryError:
        raise  # no refusal: less memory has to be used
    except Exception as error:
        return _in_a_line(error)
    return ""


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _kept_bytes(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> tuple[int, int]:
    """Bytes that autograd keeps for one inner step and for the query pass, each storage once."""
    second_order = not isinstance(program.gradient, FirstOrder | Reptile)
    weights = torch.ones(len(seeds), device=seeds.device)
    loop = inner_loop(program, episodes, seeds, Objective(weights, [1.0] * (program.steps + 1)))
    with torch.enable_grad():
        meta = leaves_of(meta)
        own = tensors_of((meta, loop.forward.frozen, loop.forward.buffers, episodes_tree(episodes)))
        ignored = {_storage(x)[0] for x in own}
        carry, step = loop.start(meta), 0
        if program.steps:
            step = _saved(lambda: loop.step(0, carry, meta, create_graph=second_order), ignored)
        query = _saved(lambda: loop.query(0, carry.parameters, meta.shared), ignored)
    return step, query


def _saved(run: Callable[[], Any], ignored: set[int]) -> int:
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        pointer, size = _storage(x)
        if pointer not in ignored:
            sizes[pointer] = size
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = run()  # alive until the count is done, or storages would be counted twice
    del kept
    return sum(sizes.values())


def _storage(x: Tensor) -> tuple[int, int]:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    storage = x.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def episodes_tree(episodes: Episodes) -> Any:
    """The tensors of a meta-batch as a tree of tuples."""
    return tuple((b.inputs, b.targets) for b in (episodes.support, episodes.query))


def _chunk(
    tasks: int,
    asked: int | None,
    bytes_task: int,
    device: torch.device,
    free: int,
    refusal: str,
    lanes: int,
) -> tuple[int, str]:
    """How many tasks to run at a time, and why."""
    if refusal:
        return 1, f"tasks: one at a time, because vmap cannot batch this model: {refusal}"
    if tasks == 1:
        return 1, "tasks: only one, which runs plainly"
    room, most = (CACHE_BYTES, tasks) if device.type == "cpu" else (free, tasks)
    if lanes and tasks * bytes_task > SMALL_BYTES:
        room, most = LANE_BYTES, math.ceil(tasks / lanes)
    fitting = max(1, min(most, room // max(bytes_task, 1)))
    even = math.ceil(tasks / math.ceil(tasks / fitting))  # rather than a small rest at the end
    size = even if asked is None else min(asked, tasks)
    spread = f", {lanes} such chunks at the same time" * (lanes > 1 and size < tasks)
    obeyed = ", as asked" * bool(asked)
    return size, f"tasks: {size} of {tasks} at a time under vmap{obeyed}{spread}"


def _method(
    asked: GradientMethod | None, unrolled: int, free: int, drew: bool
) -> tuple[GradientMethod, str]:
    """The gradient method, and why."""
    if drew and isinstance(asked, AdjointScan):
        raise ValueError(
            f"gradient={asked} runs inner steps again, but the model draws random numbers in a way "
            "that cannot be drawn again (dropout and torch's common random functions can): the "
            "meta-gradient would be wrong. Use gradient=Unrolled()."
        )
    if asked is not None:
        return asked, f"gradient: {asked}, as asked"
    if drew:
        return Unrolled(), (
            "gradient: Unrolled(), as the model draws random numbers that a method which runs "
            "steps again could not draw again"
        )
    if unrolled <= free:
        return Unrolled(), (
            f"gradient: Unrolled(), the fastest exact method, as its {_mib(unrolled)} fit in "
            f"{_mib(free)}"
        )
    return Checkpointed(), (
        f"gradient: Checkpointed(), because Unrolled() would need {_mib(unrolled)}, and "
        f"{_mib(free)} may be used"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
