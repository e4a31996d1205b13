"""What ``fastmaml profile`` does."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from fastmaml._files import require_folder
from fastmaml.cli.errors import BadInputError, own_user_errors, user_errors
from fastmaml.cli.factory import load_factory
from fastmaml.cli.profile_flags import Profiled, ProfileModule
from fastmaml.maml import MAML
from fastmaml.measure.profile.report import Report
from fastmaml.training.config import RunConfig
from fastmaml.training.interrupts import InterruptGuard


@dataclass(frozen=True)
class ProfileSubject:
    """What is profiled: a MAML, its episodes and optimizer, and the folder for the results."""

    title: str
    maml: MAML
    episodes: Any
    optimizer: Optimizer | None
    folder: Path


def configured(config: RunConfig) -> ProfileSubject:
    """Of a data set by name: its training episodes and optimizer."""
    from fastmaml.training.recipes import build_meta_trainer

    trainer = build_meta_trainer(config)
    return ProfileSubject(
        config.title, trainer.maml, trainer.train, trainer.optimizer, trainer.folder
    )


def of_factory(command: ProfileModule) -> ProfileSubject:
    """Of a function of the user's own."""
    made = load_factory(command.factory)
    return ProfileSubject(
        command.factory, made.maml, made.episodes, made.optimizer, Path(command.out)
    )


def run(subject: ProfileSubject, flags: Profiled) -> int:
    """Measure, write, print; the exit code.

    Raises:
        BadInputError: a flag that cannot be obeyed.
    """
    from rich.console import Console

    from fastmaml.measure.profile import profile
    from fastmaml.measure.profile.table import show

    with user_errors():
        require_folder(subject.folder, f"--out {subject.folder}")
    console = Console(highlight=False)
    with InterruptGuard(at_once=lambda number: True) as guard:
        try:
            with console.status("profiling"), own_user_errors():
                report = profile(
                    subject.maml,
                    subject.episodes,
                    subject.optimizer,
                    repeats=flags.repeats,
                    trace=flags.trace,
                    snapshot=flags.snapshot,
                    title=subject.title,
                )
        except KeyboardInterrupt:
            print("Interrupted: nothing was written.", file=sys.stderr)
            return guard.exit_code
    said = _write(report, subject.folder)
    show(report, console)
    console.print(said, markup=False, soft_wrap=True)
    return 0


def _write(report: Report, folder: Path) -> str:
    """A line on what was written."""
    try:
        names = ", ".join(path.name for path in report.save(folder))
    except ImportError as error:
        names = f"{', '.join(('profile.json', *report.files))}. {error}"
    except OSError as error:
        raise BadInputError(f"--out {folder} cannot be written: {error}") from error
    return f"Written to {folder}: {names.removesuffix('.')}."
