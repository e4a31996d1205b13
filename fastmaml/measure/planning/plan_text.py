"""A memory plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmaml.measure.bench.table import Table
from fastmaml.measure.planning.plan_flags import backend_of, in_flags

if TYPE_CHECKING:
    from fastmaml.measure.planning.plan import MemoryPlan, Way

COLUMNS = ("method", "tasks at once", "layers", "steps hold", "meta-step", "in all", "recorded")


def plan_text(plan: MemoryPlan) -> str:
    """All of it, in GiB."""
    return "\n".join([*heading(plan), "", str(table(plan)), "", *conclusion(plan)])


def heading(plan: MemoryPlan) -> list[str]:
    """What it is a plan of, and what stands there before a meta-step."""
    subject, standing = plan.subject, plan.standing
    lora = subject.lora
    adapts = "all weights adapt" if lora is None else f"LoRA rank {lora.rank}"
    support, query = subject.rows
    kernels = "fastmaml's kernels" if subject.backend == "shapes" else "PyTorch's operations"
    return [
        f"{plan.name}: {standing.parameters:,} parameters, {_of(subject.dtype)}; {adapts}: "
        f"{standing.learned:,} are learned",
        f"{subject.tasks} tasks of {support} + {query} rows of {subject.tokens} tokens, "
        f"{subject.steps} inner steps; {kernels}; {gib(plan.memory)} GiB",
        f"GiB before a meta-step: weights {gib(standing.weights)}, meta-batch "
        f"{gib(standing.data)}, .grad and AdamW's moments {gib(3 * standing.learned_weights)}",
    ]


def table(plan: MemoryPlan) -> Table:
    """A row for each gradient method."""
    allowances = {way.allowance for way in plan.ways}
    away = tuple(
        f"{way.method}: {gib(way.away)} GiB of inner steps wait in the CPU's memory"
        for way in plan.ways
        if way.away
    )
    return Table(
        "a meta-step by gradient method, GiB",
        COLUMNS,
        tuple(_row(way) for way in plan.ways),
        (
            "steps hold: of the meta-step, what inner steps hold at the same time",
            "in all: with what was there before, and an allowance of "
            f"{gib(min(allowances))}-{gib(max(allowances))} (1 GB and 5% of the meta-step) for the "
            "CUDA context, workspaces and the allocator",
            "recorded: in all where it is recorded as a CUDA graph (the default), which keeps a "
            "copy of weights and data",
            *away,
        ),
    )


def _row(way: Way) -> tuple[str, ...]:
    return (
        str(way.method).replace("(segments=None)", "").removesuffix("()"),
        str(way.tasks_at_once),
        "checkpointed" if way.layers_checkpointed else "kept",
        gib(way.held),
        gib(way.step),
        _against(way.eager, way.memory),
        "-" if way.recorded is None else _against(way.recorded, way.memory),
    )


def _against(size: int, memory: int) -> str:
    return gib(size) + ("" if size <= memory else " (too much)")


def conclusion(plan: MemoryPlan) -> list[str]:
    """What to write to have it fit, or what might."""
    way = plan.fitting
    if way is None:
        return [
            f"No exact way fits in {gib(plan.memory)} GiB. Less is needed with fewer rows or "
            "tokens, with one task at a time and layers='checkpointed' where these were not tried, "
            "with fewer or smaller adapters, or on several GPUs (FSDP2)."
        ]
    own = [f"gradient=fm.gradients.{way.method}", f"tasks_chunk={way.tasks_at_once}"]
    own += ['executor="eager"'] if way.fits == "eager" else []
    if way.fits == "eager" or plan.subject.backend == "reference":
        own.append(f'backend="{backend_of(plan.subject)}"')
    layers = " after model.gradient_checkpointing_enable()" * way.layers_checkpointed
    python = f"It fits: fm.MAML(..., {', '.join(own)}){layers}."
    return [python, *in_flags(plan.subject, way)]


def gib(size: float) -> str:
    """A number of GiB, without the unit."""
    return f"{size / 2**30:,.1f}" if size >= 2**30 / 20 else f"{size / 2**30:,.3f}"


def _of(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
