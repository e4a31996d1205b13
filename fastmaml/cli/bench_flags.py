"""The flags of ``fastmaml bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from tyro.conf import Positional, Suppress, arg, subcommand

from fastmaml.cli.bench_plan import BenchPlan
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
class Bench(Swept):
    """Those, and a configuration as of ``fastmaml train``."""

    dataset: Suppress[str] = ""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with the names of the configuration's flags; flags override it."""

    def __post_init__(self) -> None:
        """Leave the checks to `configuration`: their errors read better outside the parser."""

    def configuration(self) -> RunConfig:
        """The checked configuration, without what concerns the sweep."""
        kind = next(config for config, bench in KINDS.items() if isinstance(self, bench))
        return kind(**{f.name: getattr(self, f.name) for f in fields(kind)})


@dataclass(frozen=True, kw_only=True)
class BenchImages(Bench, TrainConfig):
    """The flags of ``fastmaml bench`` for images and sinusoids."""

    dataset: Suppress[str] = "digits"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class BenchFolder(Bench, ImagesConfig):
    """The flags of ``fastmaml bench`` for a folder of images and the image data sets."""

    dataset: Suppress[str] = "images"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class BenchIntents(Bench, IntentsConfig):
    """The flags of ``fastmaml bench intents``."""

    dataset: Suppress[str] = "intents"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class BenchGlue(Bench, GlueConfig):
    """The flags of ``fastmaml bench glue``."""

    dataset: Suppress[str] = "glue"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class BenchInstructions(Bench, InstructionsConfig):
    """The flags of ``fastmaml bench instructions``."""

    dataset: Suppress[str] = "instructions"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class BenchTable(Bench, TableConfig):
    """The flags of ``fastmaml bench table``."""

    dataset: Suppress[str] = "table"  # type: ignore[assignment]


KINDS: dict[type[RunConfig], type[Bench]] = {
    TrainConfig: BenchImages,
    ImagesConfig: BenchFolder,
    IntentsConfig: BenchIntents,
    GlueConfig: BenchGlue,
    InstructionsConfig: BenchInstructions,
    TableConfig: BenchTable,
}
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
