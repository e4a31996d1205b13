"""The flags of ``fastmaml profile``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Union

from tyro.conf import Positional, Suppress, arg, subcommand

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
class Profile(Profiled):
    """Those, and a configuration as of ``fastmaml train``."""

    dataset: Suppress[str] = ""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with the names of the configuration's flags; flags override it."""

    def __post_init__(self) -> None:
        """Leave the checks to `configuration`: their errors read better outside the parser."""

    def configuration(self) -> RunConfig:
        """The checked configuration, without what concerns the profile."""
        kind = next(config for config, flags in KINDS.items() if isinstance(self, flags))
        return kind(**{f.name: getattr(self, f.name) for f in fields(kind)})


@dataclass(frozen=True, kw_only=True)
class ProfileImages(Profile, TrainConfig):
    """The flags of ``fastmaml profile`` for images and sinusoids."""

    dataset: Suppress[str] = "digits"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class ProfileFolder(Profile, ImagesConfig):
    """The flags of ``fastmaml profile`` for a folder of images and the image data sets."""

    dataset: Suppress[str] = "images"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class ProfileIntents(Profile, IntentsConfig):
    """The flags of ``fastmaml profile intents``."""

    dataset: Suppress[str] = "intents"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class ProfileGlue(Profile, GlueConfig):
    """The flags of ``fastmaml profile glue``."""

    dataset: Suppress[str] = "glue"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class ProfileInstructions(Profile, InstructionsConfig):
    """The flags of ``fastmaml profile instructions``."""

    dataset: Suppress[str] = "instructions"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class ProfileTable(Profile, TableConfig):
    """The flags of ``fastmaml profile table``."""

    dataset: Suppress[str] = "table"  # type: ignore[assignment]


KINDS: dict[type[RunConfig], type[Profile]] = {
    TrainConfig: ProfileImages,
    ImagesConfig: ProfileFolder,
    IntentsConfig: ProfileIntents,
    GlueConfig: ProfileGlue,
    InstructionsConfig: ProfileInstructions,
    TableConfig: ProfileTable,
}
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
