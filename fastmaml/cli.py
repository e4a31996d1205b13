"""The command line: ``fastmaml train | eval | info``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress, arg, subcommand

from fastmaml.config import TrainConfig, read_toml
from fastmaml.presets import PRESETS

FAILED, BAD_INPUT = 1, 2
"""Exit codes: training failed; what was asked for cannot be done."""


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """The flags of ``fastmaml train``: a configuration, and where it comes from."""

    data: Suppress[str] = "digits"  # type: ignore[assignment]
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with the names of these flags (`inner_lr = 0.4`); flags override it."""
    resume: Annotated[tuple[Path, ...] | None, arg(metavar="[PATH]")] = None
    """Go on from a checkpoint, by default that in --out. Its configuration is taken over."""

    def __post_init__(self) -> None:
        """Leave the checks to `configuration`: their errors read better outside the parser."""

    def configuration(self) -> TrainConfig:
        """The checked configuration, without what concerns the command line only."""
        return TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)})


@dataclass(frozen=True)
class Evaluate:
    """Test a checkpoint on unseen classes."""

    checkpoint: Positional[Path]
    """A checkpoint that `fastmaml train` wrote, or its folder."""
    episodes: int = 600
    """How many episodes."""
    steps: int | None = None
    """Inner steps (none: as in the run's own test)."""
    split: Literal["test", "validation", "train"] = "test"
    """Whose classes."""
    seed: int | None = None
    """Of the episodes (none: those of the run's own test)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Info:
    """Versions, devices, and what is available."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0, 1 where training failed, 2 for bad input, 128 + signal if interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = _parse(arguments, PRESETS)
        if isinstance(command, Train):
            return _train(*_layered(command, arguments))
        if isinstance(command, Evaluate):
            return _evaluate(command)
        return _info()
    except _BadInputError as error:
        print(f"fastmaml: {error}", file=sys.stderr)
        return BAD_INPUT


class _BadInputError(Exception):
    """What the user asked for cannot be done; the message is a paragraph for them."""


_EXPECTED = (ValueError, OSError, ImportError)
"""What goes wrong while a run is prepared. Once it runs, an error keeps its traceback."""


def _train(config: TrainConfig, checkpoint: Path | None) -> int:
    from fastmaml.engine.errors import NonFiniteLoss
    from fastmaml.interrupts import Interrupted
    from fastmaml.recipes import build_trainer

    try:
        trainer = build_trainer(config)
        if checkpoint is not None:
            trainer.resume(checkpoint)
    except _EXPECTED as error:
        raise _BadInputError(error) from error
    again = f"fastmaml train {config.data} --resume {trainer.folder}"
    try:
        trainer.fit()
    except Interrupted as stop:
        print(f"Stopped after iteration {trainer.iteration}. Go on with: {again}", file=sys.stderr)
        return 128 + stop.signal
    except NonFiniteLoss as error:
        print(
            f"fastmaml: {error}\nIteration {trainer.iteration} was saved: {again}", file=sys.stderr
        )
        return FAILED
    return 0


def _evaluate(command: Evaluate) -> int:
    from rich.console import Console

    from fastmaml import checkpoint, evaluation, recipes, reporting

    try:
        path = _checkpoint_in(command.checkpoint)
        saved = checkpoint.load(path)
        config = _config_of(path, saved.config).updated({"device": command.device}, "--device")
        maml = recipes.build_maml(config)
        maml.load_state_dict(saved.state["maml"])
        episodes = recipes.build_episodes(config, command.split, command.seed)
        steps = command.steps if command.steps is not None else config.eval_steps or maml.steps
        if command.episodes < 1 or steps < 0:
            raise ValueError("--episodes must be at least 1 and --steps at least 0.")
    except _EXPECTED as error:
        raise _BadInputError(error) from error
    found = evaluation.evaluate(maml, iter(episodes), command.episodes, steps)
    title = f"{config.title}, iteration {saved.iteration}, {command.split} classes"
    reporting.show_evaluation(Console(), found, title)
    return 0


def _info() -> int:
    from rich.console import Console
    from rich.table import Table

    from fastmaml import environment as here

    table = Table(show_header=False)
    for name, version in here.versions().items():
        table.add_row(name, version)
    table.add_section()
    for device in here.devices():
        table.add_row("device", here.describe_device(device))
    for kind, parts in (("backend", here.backends()), ("executor", here.EXECUTORS)):
        table.add_section()
        for name, state in parts.items():
            table.add_row(f"{kind} {name}", state)
    Console().print(table)
    return 0


def _parse(arguments: Sequence[str], presets: Mapping[str, TrainConfig]) -> Any:
    """The command with its flags; each data set has defaults of its own."""
    data_sets: Any = Union[  # noqa: UP007
        tuple(
            Annotated[
                Train,
                subcommand(
                    name,
                    default=Train(**preset.as_dict()),
                    description=f"Meta-train on {name}, test on unseen classes or tasks.",
                ),
            ]
            for name, preset in presets.items()
        )
    ]
    train = Annotated[data_sets, subcommand("train", description="Meta-train a model.")]
    commands: Any = Union[  # noqa: UP007
        train, Annotated[Evaluate, subcommand("eval")], Annotated[Info, subcommand("info")]
    ]
    return tyro.cli(
        commands,
        prog="fastmaml",
        description="Exact, fast, small-memory meta-gradients (MAML) for any PyTorch module.",
        args=arguments,
        config=(OmitArgPrefixes, OmitSubcommandPrefixes),
    )


def _layered(command: Train, arguments: Sequence[str]) -> tuple[TrainConfig, Path | None]:
    """The configuration from preset, checkpoint, TOML file and flags, the later ones winning."""
    from fastmaml.checkpoint import load

    try:
        base, checkpoint = PRESETS[command.data], None
        if command.resume is not None:
            given = command.resume[0] if command.resume else Path(command.out)
            checkpoint = _checkpoint_in(given)
            base = _config_of(checkpoint, load(checkpoint).config)
            base = base.updated({"out": str(checkpoint.parent)}, "--resume")
        if command.config is not None:
            base = base.updated(read_toml(command.config), str(command.config))
        if base.data != command.data:
            raise ValueError(
                f"`fastmaml train {command.data}` was given a configuration with "
                f"data={base.data!r}: type `fastmaml train {base.data}` instead."
            )
        return _parse(arguments, {**PRESETS, command.data: base}).configuration(), checkpoint
    except _EXPECTED as error:
        raise _BadInputError(error) from error


def _checkpoint_in(path: Path) -> Path:
    """The checkpoint itself, where a run's folder was given."""
    from fastmaml.reporting import CHECKPOINT

    return path / CHECKPOINT if path.is_dir() else path


def _config_of(path: Path, saved: Mapping[str, Any]) -> TrainConfig:
    if "data" not in saved:
        raise ValueError(
            f"{path} was not written by `fastmaml train`, so its model and episodes are unknown "
            "here: use MetaTrainer.resume in the program that made it."
        )
    return TrainConfig().updated(saved, str(path))
