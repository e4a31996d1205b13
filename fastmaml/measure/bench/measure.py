"""The single measurements: time, memory and meta-gradient of one `MAML` on one meta-batch."""

from __future__ import annotations

import gc
import math
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import is_out_of_memory
from fastmaml.engine.memory.available import free_bytes
from fastmaml.engine.model.inventory import take_inventory
from fastmaml.engine.planning.plan import Plan
from fastmaml.engine.recording.executors import lanes
from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.maml.admit import admit
from fastmaml.maml.plan import plan_of
from fastmaml.measure.profile import LiveMemory

SEED = 0
"""Of the random numbers that a model draws where meta-gradients are compared."""


class LeftOutError(Exception):
    """A configuration that is not tried; the message says why."""


class Explained(NamedTuple):
    """What `MAML.explain` says."""

    plan: Plan
    lines: tuple[str, ...]
    tasks_at_once: int


class MeasuredPeak(NamedTuple):
    """Peak memory of a meta-step and of the first one, and how it was measured, or why not."""

    size: int | None
    first: int | None
    how: str


class FirstCall(NamedTuple):
    """Seconds of a first meta-step, and on CUDA the bytes at its peak; on the CPU these are 0."""

    seconds: float
    size: int


def step_seconds(maml: MAML, episodes: Episodes) -> float:
    """One meta-step's forward and backward; gradients are cleared before, as in a training loop."""
    device = next(maml.parameters()).device
    maml.zero_grad()
    _wait(device)
    begin = time.perf_counter()
    maml(episodes).loss.backward()
    _wait(device)
    return time.perf_counter() - begin


def first_call(maml: MAML, episodes: Episodes) -> FirstCall:
    """Plans and records, or compiles."""
    device = next(maml.parameters()).device
    if device.type != "cuda":
        return FirstCall(step_seconds(maml, episodes), 0)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    seconds = step_seconds(maml, episodes)
    return FirstCall(seconds, torch.cuda.max_memory_allocated(device) - before)


def turn(maml: MAML, episodes: Episodes, seconds: float) -> float:
    """The median over calls for so many seconds, at least one."""
    begin, found = time.perf_counter(), [step_seconds(maml, episodes)]
    while time.perf_counter() - begin < seconds:
        found.append(step_seconds(maml, episodes))
    return statistics.median(found[1:] or found)  # the first one finds the caches cold


def explained(maml: MAML, episodes: Episodes) -> Explained:
    """How it runs, after it has run."""
    plan = maml.explain(episodes)
    parallel = max(lanes(maml.executor, next(maml.parameters()).device), 1)
    at_once = min(episodes.tasks, plan.chunk * parallel)
    return Explained(plan, plan.reasons, at_once)


def check_room(maml: MAML, episodes: Episodes) -> None:
    """Before a first call on the CPU, where the system ends a process that takes too much.

    Raises:
        LeftOutError: the planner's estimate does not fit in what is free.
    """
    held = take_inventory(maml.module)
    if held.device.type != "cpu":
        return
    seeds = torch.arange(episodes.tasks)
    call = admit(maml, held, episodes, maml.steps, maml.executor, seeds=seeds)
    plan = plan_of(maml, maml._plans, held, call, maml.gradient, maml.executor)
    need = plan.bytes_first
    free = free_bytes(held.device)
    if need > free:
        raise LeftOutError(f"needs about {need / 1e9:.2g} GB, {free / 1e9:.2g} GB free")


def peak_allocated(maml: MAML, episodes: Episodes, first: int, held: int) -> MeasuredPeak:
    """Of one meta-step on CUDA, the model and the data not counted.

    Args:
        maml: which has run such a meta-step before.
        episodes: the meta-batch.
        first: bytes at the peak of the first one.
        held: bytes that the configuration keeps between meta-steps (its CUDA graph).
    """
    device = next(maml.parameters()).device
    maml.zero_grad()
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step_seconds(maml, episodes)
    size = torch.cuda.max_memory_allocated(device) - before + held
    return MeasuredPeak(size, first, "allocated on the GPU" + ", with its CUDA graph" * (held > 0))


def peak(fresh: MAML, episodes: Episodes, how: Explained) -> MeasuredPeak:
    """The same on the CPU.

    Args:
        fresh: a `MAML` without a meta-step behind it.
        episodes: the meta-batch.
        how: such a one runs.
    """
    gc.collect()
    if fresh.executor == "compiled":
        why = "not measured: what Inductor's code allocates is not seen on the CPU"
        return MeasuredPeak(None, None, why)
    try:
        return _live_peak(fresh, episodes, how)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # It has run before: this is about being watched.
        return MeasuredPeak(None, None, f"not measured: {' '.join(str(error).split())}")


def _live_peak(maml: MAML, episodes: Episodes, how: Explained) -> MeasuredPeak:
    chunk = how.plan.chunk
    if how.tasks_at_once <= chunk:
        first, size = _counted(maml, episodes), _counted(maml, episodes)
        return MeasuredPeak(size, first, "live tensors counted")
    # Chunks on other threads are not seen from here: one chunk of this kind, on this thread. The
    # first call records one, and then replays as many as later ones do.
    maml.tasks_chunk = chunk
    first, size = _counted(maml, episodes[:chunk]), _counted(maml, episodes[:chunk])
    times = math.ceil(how.tasks_at_once / chunk)
    said = f"live tensors counted of one of {times} chunks at the same time"
    return MeasuredPeak(times * size, max(first, times * size), said)


def _counted(maml: MAML, episodes: Episodes) -> int:
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
