"""Choosing how a meta-step runs: batched or looped, in what chunks, with which gradient method."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastmaml.engine.diagnosis import class_count
from fastmaml.engine.inner_loop import Objective
from fastmaml.engine.meta_step import MetaResult, Program, inner_loop, meta_step, tensors_of
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import Checkpointed, GradientMethod, Unrolled
from fastmaml.gradients.base import Meta, leaves_of
from fastmaml.rules.base import Tensors

CACHE_BYTES = 32 * 2**20
"""On the CPU a chunk's activations should stay near the last-level cache: for conv4 on Omniglot 4
to 8 tasks at a time were faster than 1 and than 32."""


@dataclass(frozen=True)
class Plan:
    """How a meta-step runs, and why.

    Attributes:
        gradient: how the inner loop is differentiated.
        chunk: how many tasks run at a time.
        batched: whether they run under vmap.
        classes: how many classes the labels may name, where that is known.
        bytes_step: measured bytes that one inner step of one task keeps for its second derivative.
        bytes_query: the same for the query pass.
        bytes_estimate: the estimated peak of the whole meta-step, beyond the model and the data.
        bytes_budget: what the estimate was held against.
        reasons: one line for every choice.
    """

    gradient: GradientMethod
    chunk: int
    batched: bool
    classes: int | None
    bytes_step: int
    bytes_query: int
    bytes_estimate: int
    bytes_budget: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.reasons)

    def applied(self, program: Program) -> Program:
        """The program with what was decided."""
        forward = replace(program.forward, batched=self.batched)
        return replace(program, gradient=self.gradient, chunk=self.chunk, forward=forward)


def make_plan(
    program: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    gradient: GradientMethod | None,
    chunk: int | None,
    budget: int | None,
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

    Raises:
        Exception: whatever the model raises when it runs on one task in plain PyTorch.
    """
    tasks, reasons = episodes.tasks, []
    free = free_bytes(seeds.device) // 2 if budget is None else budget
    alone = replace(program, chunk=1, gradient=gradient or Unrolled(), steps=min(program.steps, 1))
    outputs = _run(alone, meta, episodes[:1], seeds[:1]).outputs
    bytes_step, bytes_query = _kept_bytes(alone, meta, episodes[:1], seeds[:1])

    pair = replace(alone, chunk=2, forward=replace(alone.forward, batched=True))
    refusal = _refusal(pair, meta, episodes[:2], seeds[:2]) if tasks > 1 else ""
    if refusal:
        reasons.append(f"tasks: one at a time, because vmap cannot batch this model: {refusal}")
    batched = not refusal
    reasons.append(
        f"memory: one inner step of one task keeps {_mib(bytes_step)} for its second derivative, "
        f"the query pass {_mib(bytes_query)} (measured on the first task)"
    )

    def unrolled(tasks: int) -> int:
        return tasks * (program.steps * bytes_step + bytes_query)

    size = chunk if chunk is not None and batched else 1
    if chunk is None and batched:
        size = _fitting(tasks, bytes_step + bytes_query, seeds.device, free)
    if gradient is None:
        gradient, why = _exact_method(unrolled(size), free)
        reasons.append(why)
    else:
        reasons.append(f"gradient: {gradient}, as asked")
    estimate = (
        unrolled(size)
        if isinstance(gradient, Unrolled)
        else _scan_bytes(size, program.steps, bytes_step, bytes_query, meta.adapted)
    )
    if batched:
        asked = ", as asked" if chunk is not None else ""
        reasons.append(f"tasks: {min(size, tasks)} of {tasks} at a time under vmap{asked}")
    reasons.append("backend: reference (PyTorch); executor: eager")
    classes = class_count(program.forward.loss, outputs, episodes[:1].query.targets)
    return Plan(
        gradient, size, batched, classes, bytes_step, bytes_query, estimate, free, tuple(reasons)
    )


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30  # an operating system that does not say: assume a small machine


def _run(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> MetaResult:
    weights = torch.full((len(seeds),), 1.0, device=seeds.device)
    return meta_step(program, meta, episodes, seeds, weights, [0.0] * program.steps + [1.0])


def _refusal(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> str:
    """Why the program cannot run, in a line; empty if it can.

    Called only for what plain PyTorch was just seen to run, so whatever is raised here is the
    transform's refusal and no error of the user's: it is reported by `MAML.explain`.
    """
    try:
        _run(program, meta, episodes, seeds)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def _kept_bytes(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> tuple[int, int]:
    """Bytes that autograd keeps for one inner step and for the query pass, each storage once."""
    weights = torch.ones(len(seeds), device=seeds.device)
    loop = inner_loop(program, episodes, seeds, Objective(weights, [1.0] * (program.steps + 1)))
    with torch.enable_grad():
        meta = leaves_of(meta)
        own = tensors_of((meta, loop.forward.frozen, loop.forward.buffers, episodes_tree(episodes)))
        ignored = {_storage(x)[0] for x in own}
        carry, step = loop.start(meta), 0
        if program.steps:
            step = _saved(lambda: loop.step(0, carry, meta, create_graph=True), ignored)
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


def _fitting(tasks: int, bytes_task: int, device: torch.device, free: int) -> int:
    """How many tasks to run at a time."""
    room = CACHE_BYTES if device.type == "cpu" else free
    return max(1, min(tasks, room // max(bytes_task, 1)))


def _exact_method(unrolled: int, free: int) -> tuple[GradientMethod, str]:
    """An exact method that fits, and why it was chosen."""
    if unrolled <= free:
        return Unrolled(), (
            f"gradient: Unrolled(), the fastest exact method, as its {_mib(unrolled)} fit in "
            f"{_mib(free)}"
        )
    return Checkpointed(), (
        f"gradient: Checkpointed(), because Unrolled() would need {_mib(unrolled)}, and "
        f"{_mib(free)} may be used"
    )


def _scan_bytes(tasks: int, steps: int, bytes_step: int, bytes_query: int, adapted: Tensors) -> int:
    """One copy of what adapts for every step, and the work of one step."""
    copy = sum(p.numel() * p.element_size() for p in adapted.values())
    return tasks * (steps * copy + max(bytes_step, bytes_query))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
