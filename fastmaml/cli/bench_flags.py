"""The flags of ``fastmaml bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from tyro.conf import Positional, subcommand

from fastmaml.cli.bench_plan import BenchPlan
from fastmaml.cli.configured import Configured, of_each
from fastmaml.engine.recording.executors import ExecutorName
from fastmaml.ops._load import Backend
from fastmaml.training.config import (
    GlueConfig,
    ImagesConfig,
    InstructionsConfig,
    IntentsConfig,
    RunConfig,
    TableConfig,
    TrainConfig,
)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What is varied and measured."""

    methods: tuple[str, ...] = ("unrolled", "checkpointed", "mixed-mode", "first-order")
    """Gradient methods, also truncated and reptile; mixed-mode:3 has 3 segments, and
    mixed-mode+offload keeps inner steps on the CPU."""
    sweep_steps: tuple[int, ...] = (1, 2, 5)
    """Inner steps."""
    sweep_tasks: tuple[int, ...] = ()
    """Tasks of the meta-batch (none: those of the configuration)."""
    backends: tuple[Literal["auto", Backend], ...] = ()
    """What runs the model's layers (none: as configured)."""
    executors: tuple[Literal["auto", ExecutorName], ...] = ()
    """How the meta-step runs (none: as configured)."""
    vs: Literal["first-order"] | None = None
    """Add the table of second order against first order."""
    accuracy: int | None = None
    """With --vs: meta-train so many iterations with each, and test."""
    budget: str | None = None
    """Say what fits in so many bytes, such as 8GB."""
    repeats: int = 9
    """Turns of each configuration."""
    seconds: float = 30.0
    """For all turns together; three are taken in any case."""


@dataclass(frozen=True, kw_only=True)
class Bench(Configured, Swept):
    """Those, and a configuration as of ``fastmaml train``."""


KINDS = of_each(
    Bench, TrainConfig, ImagesConfig, IntentsConfig, GlueConfig, InstructionsConfig, TableConfig
)
"""Of every kind of configuration, its flags."""


@dataclass(frozen=True)
class BenchModule(Swept):
    """Your own model and episodes."""

    factory: Positional[str]
    """module:function; it returns (maml, episodes[, optimizer[, test]]), test for --accuracy."""
    out: str = "runs/bench"
    """Folder for bench.json and bench.png."""


def bench_command(presets: Mapping[str, RunConfig]) -> Any:
    """The subcommand, with one of its own for each data set and one for ``module:function``."""
    own = Annotated[
        BenchModule,
        subcommand("module", description="Measure your own model: module:function."),
    ]
    planned = Annotated[
        BenchPlan,
        subcommand("plan", description="Estimate a language model's memory: --plan MODEL."),
    ]
    choices = (
        *(_of(name, preset) for name, preset in presets.items() if type(preset) in KINDS),
        own,
        planned,
    )
    each: Any = Union[choices]  # noqa: UP007
    return Annotated[
        each,
        subcommand(
            "bench",
            description="Measure what a meta-step costs by gradient method, inner steps, tasks, "
            "backend and executor. In place of a data set, module:function is your own. "
            "--plan MODEL estimates the memory of a language model that is not there.",
        ),
    ]


def _of(name: str, preset: RunConfig) -> Any:
    kind = KINDS[type(preset)]
    values = {**preset.as_dict(), "out": f"runs/bench-{name}"}
    return Annotated[
        kind,
        subcommand(name, default=kind(**values), description=f"Measure meta-steps on {name}."),
    ]
