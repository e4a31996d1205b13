"""The commands and their flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from fastmaml.cli.bench_flags import bench_command
from fastmaml.cli.bench_plan import as_subcommand
from fastmaml.cli.configured import Configured, of_each
from fastmaml.cli.factory import is_factory
from fastmaml.cli.language_flags import Adapt, Export
from fastmaml.cli.profile_flags import profile_command
from fastmaml.training.config import (
    GlueConfig,
    ImagesConfig,
    InstructionsConfig,
    IntentsConfig,
    PolicyConfig,
    RunConfig,
    TableConfig,
    TrainConfig,
)


@dataclass(frozen=True, kw_only=True)
class Train(Configured):
    """The flags of ``fastmaml train``: those of a configuration, and where it comes from."""

    resume: Annotated[tuple[Path, ...] | None, arg(metavar="[PATH]")] = None
    """Go on from a checkpoint, by default that in --out. Its configuration is taken over."""

    quick: bool = False
    """A first look: few iterations, small sets, short texts, and few episodes to test on."""

    def _values(self, kind: type[RunConfig]) -> dict[str, Any]:
        values = super()._values(kind)
        if self.quick:
            capped = [n for n in QUICK.keys() & values.keys() if isinstance(values[n], int)]
            values |= {name: min(values[name], QUICK[name]) for name in capped}
            values |= {"patience": None, "best_by": None}  # ten iterations have no validation
        return values


QUICK = {
    **{"iterations": 10, "tasks": 2, "test_episodes": 8, "validation_episodes": 4},
    **{"evaluate_every": 0, "max_length": 48, "support": 8, "query": 8, "queries": 5},
    **{"test_query": 16, "trajectories": 5, "warmup": 2},
}
"""With --quick, no setting is larger than this."""


@dataclass(frozen=True, kw_only=True)
class TrainSmall(Train):
    """The flags of ``fastmaml train`` for small networks made from scratch."""

    plus_plus: Annotated[bool, arg(name="mamlpp")] = False
    """MAML++ whole, as defaults of other flags: rule lslr, 5 inner steps, per-step BatchNorm, the
    multi-step loss for a tenth of the iterations, first order for half of them, schedule cosine."""


KINDS: dict[type[RunConfig], type[Train]] = {
    **of_each(TrainSmall, TrainConfig, ImagesConfig),
    **of_each(Train, IntentsConfig, GlueConfig, InstructionsConfig, TableConfig, PolicyConfig),
}
"""Of every kind of configuration, its flags."""


@dataclass(frozen=True)
class Evaluate:
    """Test a checkpoint on unseen classes or tasks."""

    checkpoint: Positional[Path]
    """A checkpoint that `fastmaml train` wrote, or its folder."""
    episodes: int | None = None
    """How many episodes (none: as in the run's own test, or its validation)."""
    steps: int | None = None
    """Inner steps (none: as in the run's own test)."""
    split: Literal["test", "validation", "train"] = "test"
    """Whose classes or tasks."""
    seed: int | None = None
    """Of the episodes (none: those of the run's own test)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    change: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    """Settings other than the run's, such as shots=5, data=FOLDER or test=wnli."""


@dataclass(frozen=True)
class Info:
    """Versions, devices, and what is available."""


OWN = ("bench", "profile")
"""The commands that take a model and episodes of the user's own."""


def parse(arguments: Sequence[str], presets: Mapping[str, RunConfig]) -> Any:
    """The command with its flags; each data set has defaults of its own."""
    data_sets: Any = Union[  # noqa: UP007
        tuple(_train(name, preset) for name, preset in presets.items())
    ]
    train = Annotated[data_sets, subcommand("train", description="Meta-train a model.")]
    commands: Any = Union[  # noqa: UP007
        train,
        Annotated[Evaluate, subcommand("eval")],
        profile_command(presets),
        bench_command(presets),
        Annotated[Export, subcommand("export")],
        Annotated[Adapt, subcommand("adapt")],
        Annotated[Info, subcommand("info")],
    ]
    return tyro.cli(
        commands,
        prog="fastmaml",
        description="Exact, fast, small-memory meta-gradients (MAML) for any PyTorch module.",
        args=with_module(arguments),
        config=(OmitArgPrefixes, OmitSubcommandPrefixes),
    )


def with_module(arguments: Sequence[str]) -> Sequence[str]:
    """With ``module`` before ``module:function``, and ``--plan`` as a subcommand."""
    if len(arguments) > 1 and arguments[0] in OWN and is_factory(arguments[1]):
        return [arguments[0], "module", *arguments[1:]]
    return as_subcommand(arguments) if arguments[:1] in (["bench"], ("bench",)) else arguments


def _train(name: str, preset: RunConfig) -> Any:
    kind = KINDS[type(preset)]
    return Annotated[
        kind,
        subcommand(
            name,
            default=kind(**preset.as_dict()),
            description=f"Meta-train on {name}, test on unseen classes or tasks.",
        ),
    ]
