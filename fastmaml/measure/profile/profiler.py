"""`profile`: where a meta-step spends its time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch.optim import Optimizer

from fastmaml._environment import describe_device, versions
from fastmaml.engine.recording.captured import Captured
from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.measure.profile import extras
from fastmaml.measure.profile.machine import Product, resident_growth
from fastmaml.measure.profile.phased_executor import PhasedExecutor
from fastmaml.measure.profile.phases import Silence
from fastmaml.measure.profile.report import Quantiles, Report
from fastmaml.measure.profile.rows import rows_of, timeline_of
from fastmaml.measure.profile.spans import Spans, clock_of
from fastmaml.measure.profile.steps import Step, executed_by, needs_closure, unchanged
from fastmaml.measure.profile.watch import Watch

MISSED = 0.05
"""As a share of the plain step: phases that add up to more or less by this much are noted."""

WARM_UPS = 3
"""Steps before any is measured: the first ones record, and libraries set up."""

FOLLOWED = 3
"""Steps that are followed where chunks run on several threads."""


def profile(
    maml: MAML,
    episodes: Episodes | Iterable[Episodes],
    optimizer: Optimizer | None = None,
    *,
    repeats: int = 10,
    trace: bool = False,
    snapshot: bool = False,
    title: str = "",
) -> Report:
    """Measure a meta-step by its phases: time, calls, FLOPs and memory.

    A step draws a meta-batch, runs ``maml(episodes).loss.backward()`` and the optimizer. Plain
    steps and steps with marks between their phases take turns, so that the report can say what
    the marks cost; another is followed operator by operator, for calls, FLOPs and memory, and is
    not timed (where chunks run on several threads, three, of which the one with most memory
    counts, as it depends on when they meet). All steps run on the first meta-batch and from the
    same parameters.

    Nothing of yours is changed but where an iterable of episodes stands: parameters, ``.grad``,
    buffers, modes, the optimizer's state and the random state of torch and of Python stay as they
    are. Without a call of `profile`, a meta-step has nothing of it in it.

    Args:
        maml: profiled with its executor, backend and gradient method.
        episodes: a meta-batch, every tensor ``[tasks, examples, ...]``; or an iterable of them,
            from which every step draws one, so that sampling is measured.
        optimizer: of `maml`'s parameters; None leaves its phase out.
        repeats: how many steps of either kind are timed.
        trace: also record one step with `torch.profiler`, for ``trace.json`` (Chrome, Perfetto).
        snapshot: also keep the CUDA allocator's history of one step, for
            ``memory_snapshot.pickle`` (pytorch.org/memory_viz).
        title: of the report.

    Returns:
        `Report`; ``print`` it, ``save(folder)`` it.

    Raises:
        ValueError: an argument that cannot be obeyed, named in the message.
        RuntimeError: gradients are disabled.

    Cost: about ``2 * repeats + 10`` meta-steps, and some times as much for the one followed.
    """
    _check(maml, episodes, optimizer, repeats)
    with unchanged(maml, optimizer) as own:
        measured = _Measured(maml, Step(maml, episodes, own), repeats)
        found = _measure(measured)
        files, notes = {}, found.pop("notes")
        if trace:
            files["trace.json"], note = extras.trace(measured)
            notes.append(note)
        if snapshot:
            content, note = extras.snapshot(measured)
            files |= {"memory_snapshot.pickle": content} if content else {}
            notes.append(note)
    title = title or type(maml.module).__name__
    report = Report(title=title, files=files, **found)
    return replace(report, notes=(*_missing_time(report), *notes))


@final
@dataclass(frozen=True)
class _Measured:
    maml: MAML
    step: Step
    repeats: int

    @property
    def device(self) -> torch.device:
        return next(self.maml.module.parameters()).device


def _check(maml: MAML, episodes: Any, optimizer: Any, repeats: Any) -> None:
    if not isinstance(maml, MAML):
        raise ValueError(
            f"maml is a {type(maml).__name__}; give a fastmaml.MAML (of a wrapper, what it wraps)."
        )
    if not isinstance(episodes, Iterable):
        raise ValueError(
            f"episodes is a {type(episodes).__name__}; give a fastmaml.Episodes, or an iterable of "
            "them."
        )
    if type(repeats) is not int or repeats < 1:
        raise ValueError(f"repeats={repeats!r}: give how many steps to time, at least 1.")
    if not isinstance(optimizer, Optimizer | None):
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer or None."
        )
    if optimizer is not None:
        own = {id(p) for p in maml.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "optimizer holds none of maml's parameters: make it of maml.parameters()."
            )
        if needs_closure(optimizer):
            raise ValueError(
                f"optimizer is a {type(optimizer).__name__}, whose step() calls a closure again "
                "and again, so that there is no one meta-step to profile: leave it out, and its "
                "phase is left out."
            )
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "gradients are disabled here, and a meta-step computes them: call "
            "profile outside torch.no_grad()."
        )


def _measure(measured: _Measured) -> dict[str, Any]:
    """Everything in a `Report` but its title and files."""
    maml, step, device = measured.maml, measured.step, measured.device
    executor = PhasedExecutor(maml._execute)
    phased = executed_by(maml, executor)
    for learner in (maml, phased):
        for _ in range(WARM_UPS):
            step(learner, Silence())
    product = Product(device, next(maml.module.parameters()).dtype)
    plain, marked, allocated = _timed(measured, executor, phased, product)
    cuda, opaque = device.type == "cuda", executor.opaque
    watch = Watch() if opaque else _followed(step, phased, executor, marked[-1].threads)
    wall = Quantiles.of([s.wall for s in plain])
    peak: int | str = max(allocated) if cuda else watch.peak_bytes
    peak_how = "PyTorch's allocator" if cuda else "live tensors, followed through dispatch"
    if opaque and not cuda:
        peak = "not visible in Inductor's program, which allocates by itself"
    resident: int | str = "none on a GPU"
    if not cuda:
        resident = resident_growth(lambda: step(maml, Silence()))
    return {
        "phases": rows_of(step, marked, watch, opaque, product.flops),
        "step_seconds": wall,
        "profiled_seconds": Quantiles.of([s.wall for s in marked]),
        "tasks_per_second": step.first.tasks / wall.median,
        "peak_bytes": peak,
        "peak_how": peak_how,
        "resident_bytes": resident,
        "peak_flops": product.flops,
        "peak_flops_how": str(product),
        "setting": _setting(measured, executor, marked[-1].threads),
        "notes": [] if opaque else _notes(watch, wall, executor, marked[-1].threads, cuda),
        "timeline": None if opaque else timeline_of(watch),
    }


def _timed(
    measured: _Measured, executor: PhasedExecutor, phased: MAML, product: Product
) -> tuple[list[Spans], list[Spans], list[int]]:
    """Plain and marked steps in turn, and the most that each of the latter allocated on a GPU."""
    device, clock = measured.device, clock_of(measured.device)
    plain, marked, allocated = [], [], []
    for number in range(measured.repeats):
        plain.append(Spans(clock))
        executor.sink = Spans(clock)
        marked.append(executor.sink)
        # Either is the first as often as the other, as what ran before leaves its traces.
        pair = [(measured.maml, plain[-1]), (phased, marked[-1])]
        for learner, spans in pair if number % 2 else reversed(pair):
            if device.type == "cuda":
                before = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
            measured.step(learner, spans)
            if device.type == "cuda" and learner is phased:
                allocated.append(torch.cuda.max_memory_allocated(device) - before)
        if number % 4 == 0:
            product.take()
            measured.step(measured.maml, Silence())  # the caches are the step's again
    return plain, marked, allocated


def _followed(step: Step, phased: MAML, executor: PhasedExecutor, threads: int) -> Watch:
    """A step as a `Watch` saw it; of several the one with most memory, where threads may meet."""
    watches = [Watch() for _ in range(FOLLOWED if threads > 1 else 1)]
    for watch in watches:
        executor.sink = watch
        step(phased, watch)
    return max(watches, key=lambda watch: watch.peak_bytes)


def _setting(measured: _Measured, executor: PhasedExecutor, threads: int) -> Mapping[str, Any]:
    maml = measured.maml
    plan = maml._plans.values()[-1]
    replays = executor.replays
    said = "eager"
    if executor.opaque:
        said = "compiled"
    elif replays:
        said = f"captured, {replays[0].operations} operations for a chunk of tasks"
    reasons = list(plan.reasons)
    if not replays and isinstance(maml._execute, Captured) and not executor.opaque:
        reasons.append("executor: eager, as this meta-step cannot be captured; see maml.explain")
    return {
        "device": describe_device(measured.device),
        "threads": torch.get_num_threads(),
        "threads_of_chunks": threads,
        "versions": versions(),
        "model": type(maml.module).__name__,
        "parameters": sum(p.numel() for p in maml.module.parameters()),
        "dtype": str(next(maml.module.parameters()).dtype).removeprefix("torch."),
        "tasks": measured.step.first.tasks,
        "steps": maml.steps,
        "tasks_chunk": plan.chunk,
        "executor": said,
        "backend": plan.backend,
        "gradient": str(plan.gradient),
        "reasons": reasons,
        "repeats": measured.repeats,
    }


def _missing_time(report: Report) -> list[str]:
    """Where the phases, which are those of the profiled step, do not add up to the plain one."""
    off = report.marked_seconds / report.step_seconds.median - 1
    if abs(off) <= MISSED:
        return []
    much = f"{off:.0%} more" if off > 0 else f"{-off:.0%} less"
    marks = "the marks cost that much, or " * (off > 0)
    return [
        f"the phases add up to {much} than the plain step takes: {marks}the machine had other "
        "work; read the shares rather than the times"
    ]


def _notes(
    watch: Watch, wall: Quantiles, executor: PhasedExecutor, threads: int, cuda: bool
) -> list[str]:
    followed = watch.samples[-1].seconds / wall.median
    notes = [
        f"calls, FLOPs and memory are those of a step that was followed operator by operator, "
        f"which took {followed:.1f} times as long and is not part of the times",
    ]
    if threads > 1:
        notes.append(
            f"chunks of tasks ran on {threads} threads: a phase's time is theirs divided by "
            f"{threads}, and what they wait for each other is in the rest"
        )
    if cuda and executor.replays:
        notes.append(
            "the plain step is one CUDA graph, in which phases cannot be timed: theirs come from "
            "the same operations called one by one, and so does the memory; the graph keeps its "
            "own memory reserved"
        )
    if not cuda and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        notes.append(
            "the resident memory includes what malloc keeps of freed memory, which is most of it "
            "where tensors are small: set MALLOC_MMAP_THRESHOLD_=65536 to have it given back"
        )
    unknown = sorted(set().union(*(c.unknown for c in watch.counts.values())))
    if unknown:
        notes.append(f"no formula for the FLOPs of {', '.join(unknown)}")
    return notes
