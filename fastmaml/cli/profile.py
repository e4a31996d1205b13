"""What ``fastmaml profile`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from fastmaml.cli.factory import load_factory
from fastmaml.cli.profile_flags import Profiled, ProfileModule
from fastmaml.config import RunConfig
from fastmaml.maml import MAML


@dataclass(frozen=True)
class Subject:
    """What is profiled."""

    title: str
    maml: MAML
    episodes: Any
    optimizer: Optimizer | None
    folder: Path


def configured(config: RunConfig) -> Subject:
    """Of a data set by name: its training episodes and optimizer."""
    from fastmaml.recipes import build_trainer

    trainer = build_trainer(config)
    return Subject(config.title, trainer.maml, trainer.train, trainer.optimizer, trainer.folder)


def of_factory(command: ProfileModule) -> Subject:
    """Of a function of the user's own."""
    maml, episodes, optimizer = load_factory(command.factory)
    return Subject(command.factory, maml, episodes, optimizer, Path(command.out))


def run(subject: Subject, flags: Profiled) -> int:
    """Measure, print, write; the exit code.

    Raises:
        ValueError: a flag that cannot be obeyed.
    """
    from rich.console import Console

    from fastmaml.profiling import profile
    from fastmaml.profiling.table import show

    console = Console(highlight=False)
    with console.status("profiling"):
        report = profile(
            subject.maml,
            subject.episodes,
            subject.optimizer,
            repeats=flags.repeats,
            trace=flags.trace,
            snapshot=flags.snapshot,
            title=subject.title,
        )
    show(report, console)
    try:
        names = ", ".join(path.name for path in report.save(subject.folder))
    except ImportError as error:
        names = ", ".join(("profile.json", *report.files))
        console.print(str(error), markup=False, soft_wrap=True)
    console.print(f"Written to {subject.folder}: {names}.", markup=False, soft_wrap=True)
    return 0
