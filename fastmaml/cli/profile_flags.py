"""The flags of ``fastmaml profile``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

from tyro.conf import Positional, subcommand

from fastmaml.cli.configured import Configured, of_each
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
class Profiled:
    """What ``fastmaml profile`` measures, whatever the subject."""

    repeats: int = 10
    """Steps that are timed."""
    trace: bool = False
    """Also write trace.json, for Chrome or Perfetto."""
    snapshot: bool = False
    """Also write memory_snapshot.pickle (CUDA only)."""


@dataclass(frozen=True, kw_only=True)
class Profile(Configured, Profiled):
    """Those, and a configuration as of ``fastmaml train``."""


KINDS = of_each(
    Profile, TrainConfig, ImagesConfig, IntentsConfig, GlueConfig, InstructionsConfig, TableConfig
)
"""Of every kind of configuration, its flags."""


@dataclass(frozen=True)
class ProfileModule(Profiled):
    """Your own model and episodes."""

    factory: Positional[str]
    """module:function; it returns (maml, episodes[, optimizer])."""
    out: str = "runs/profile"
    """Folder for profile.json and profile.png."""


def profile_command(presets: Mapping[str, RunConfig]) -> Any:
    """The subcommand, with one of its own for each data set and one for ``module:function``."""
    own = Annotated[
        ProfileModule,
        subcommand("module", description="Profile your own model: module:function."),
    ]
    choices = (
        *(_of(name, preset) for name, preset in presets.items() if type(preset) in KINDS),
        own,
    )
    each: Any = Union[choices]  # noqa: UP007
    return Annotated[
        each,
        subcommand(
            "profile",
            description="Measure where a meta-step spends time and memory. In place of a data "
            "set, module:function is your own.",
        ),
    ]


def _of(name: str, preset: RunConfig) -> Any:
    kind = KINDS[type(preset)]
    values = {**preset.as_dict(), "out": f"runs/profile-{name}"}
    return Annotated[
        kind,
        subcommand(name, default=kind(**values), description=f"Profile a meta-step on {name}."),
    ]
