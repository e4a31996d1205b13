"""The single measurements: time, memory and meta-gradient of one `MAML` on one meta-batch."""

from __future__ import annotations

import contextlib
import gc
import io
import math
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor

from fastmaml.assembly import meta_of, plan_of, program_of
from fastmaml.engine.executors import lanes
from fastmaml.engine.free_memory import free_bytes
from fastmaml.engine.inventory import take_inventory
from fastmaml.engine.planning import Plan
from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.profiling import LiveMemory

SEED = 0
"""Of the random numbers that a model draws where meta-gradients are compared."""

FIRST_CALL = 2
"""A recording is made of an eager run and checked against it: it takes up to twice the memory of
the replays to come."""


class LeftOutError(Exception):
    """A configuration that is not tried; the message says why."""


class Explained(NamedTuple):
    """What `MAML.explain` says."""

    plan: Plan
    lines: tuple[str, ...]
    tasks_at_once: int


class Peak(NamedTuple):
    """Peak memory of a meta-step, and how it was measured, or why not."""

    size: int | None
    how: str


def step_seconds(maml: MAML, episodes: Episodes) -> float:
    """One meta-step's forward and backward; gradients are cleared before, as in a training loop."""
    device = next(maml.parameters()).device
    maml.zero_grad()
    _wait(device)
    begin = time.perf_counter()
    maml(episodes).loss.backward()
    _wait(device)
    return time.perf_counter() - begin


def turn(maml: MAML, episodes: Episodes, seconds: float) -> float:
    """The median over calls for so many seconds, at least one."""
    begin, found = time.perf_counter(), [step_seconds(maml, episodes)]
    while time.perf_counter() - begin < seconds:
        found.append(step_seconds(maml, episodes))
    return statistics.median(found[1:] or found)  # the first one finds the caches cold


def explained(maml: MAML, episodes: Episodes) -> Explained:
    """How it runs, after it has run."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        plan = maml.explain(episodes)
    parallel = max(lanes(maml.executor, next(maml.parameters()).device), 1)
    at_once = min(episodes.tasks, plan.chunk * parallel)
    return Explained(plan, tuple(printed.getvalue().splitlines()), at_once)


def check_room(maml: MAML, episodes: Episodes) -> None:
    """Before a first call on the CPU, where the system ends a process that takes too much.

    Raises:
        LeftOutError: the planner's estimate does not fit in what is free.
    """
    held = take_inventory(maml.module)
    if held.device.type != "cpu":
        return
    program = program_of(maml, held, maml.steps, maml.executor)
    seeds = torch.arange(episodes.tasks)
    plan = plan_of(
        maml, program, meta_of(maml, held), episodes, seeds, maml.gradient, held, maml.executor
    )
    need = plan.bytes_estimate * (1 if maml.executor == "eager" else FIRST_CALL)
    free = free_bytes(held.device)
    if need > free:
        raise LeftOutError(f"needs about {need / 1e9:.2g} GB, {free / 1e9:.2g} GB free")


def peak(maml: MAML, episodes: Episodes, how: Explained, held: int) -> Peak:
    """Of one meta-step, the model and the data not counted.

    Args:
        maml: which has run such a meta-step before.
        episodes: the meta-batch.
        how: it runs.
        held: on CUDA, bytes that the configuration keeps between meta-steps (its CUDA graph).
    """
    device = next(maml.parameters()).device
    maml.zero_grad()
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step_seconds(maml, episodes)
        size = torch.cuda.max_memory_allocated(device) - before + held
        return Peak(size, "allocated on the GPU" + ", with its CUDA graph" * (held > 0))
    if maml.executor == "compiled":
        return Peak(None, "not measured: what Inductor's code allocates is not seen on the CPU")
    try:
        return _live_peak(maml, episodes, how)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # it has run before: this is about being watched
        return Peak(None, f"not measured: {' '.join(str(error).split())}")


def _live_peak(maml: MAML, episodes: Episodes, how: Explained) -> Peak:
    chunk = how.plan.chunk
    if how.tasks_at_once <= chunk:
        return Peak(_counted(maml, episodes), "live tensors counted")
    # Chunks on other threads are not seen from here: one chunk of this kind, on this thread.
    asked, maml.tasks_chunk = maml.tasks_chunk, chunk
    try:
        size = _counted(maml, episodes[:chunk])
    finally:
        maml.tasks_chunk = asked
    times = math.ceil(how.tasks_at_once / chunk)
    return Peak(times * size, f"live tensors counted of one of {times} chunks at the same time")


def _counted(maml: MAML, episodes: Episodes) -> int:
    maml(episodes).loss.backward()  # plans, and records where a slice was not seen before
    maml.zero_grad()
    with LiveMemory() as memory:
        maml(episodes).loss.backward()
    maml.zero_grad()
    return memory.peak_bytes


def gradient(maml: MAML, episodes: Episodes) -> Tensor:
    """The meta-gradient as one float64 vector on the CPU, zero where there is none."""
    torch.manual_seed(SEED)
    maml.zero_grad()
    maml(episodes).loss.backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in maml.parameters()]
    found = torch.cat([p.detach().flatten().double().cpu() for p in parts])
    maml.zero_grad()
    return found


def reserved(device: torch.device) -> int:
    """Bytes that the CUDA allocator cannot give back; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
