"""What ``fastmaml bench`` does."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from fastmaml._files import require_folder
from fastmaml.cli.bench_flags import BenchModule, Swept
from fastmaml.cli.errors import BadInputError, own_user_errors, user_errors
from fastmaml.cli.factory import load_factory
from fastmaml.cli.telling import telling
from fastmaml.gradients import GradientMethod
from fastmaml.gradients.names import METHOD_NAMES, NUMBERED, OFFLOADING, named
from fastmaml.maml import MAML
from fastmaml.training.config import RunConfig
from fastmaml.training.interrupts import InterruptGuard


@dataclass(frozen=True)
class BenchSubject:
    """What is measured: the arguments of `bench` that the command's flags do not hold."""

    title: str
    maml: MAML
    episodes: Any
    test: Iterable[Any] | None
    optimizer: Optimizer | None
    folder: Path


def configured(config: RunConfig) -> BenchSubject:
    """The subject that a configuration describes: a data set by name, with its trainer's parts."""
    from fastmaml.training.recipes import build_meta_trainer

    trainer = build_meta_trainer(config)
    return BenchSubject(
        config.title, trainer.maml, trainer.train, trainer.test, trainer.optimizer, trainer.folder
    )


def of_factory(command: BenchModule) -> BenchSubject:
    """Of a function of the user's own."""
    made = load_factory(command.factory)
    return BenchSubject(
        command.factory, made.maml, made.episodes, made.test, made.optimizer, Path(command.out)
    )


def run(subject: BenchSubject, flags: Swept, test_episodes: int = 200) -> int:
    """Measure, write after every cell and round, print; the exit code.

    Raises:
        BadInputError: a flag that cannot be obeyed.
    """
    from rich.console import Console

    from fastmaml.measure.bench import bench

    with user_errors():
        require_folder(subject.folder, f"--out {subject.folder}")
    console, keep = Console(highlight=False), _Keeper(subject.folder)
    with InterruptGuard(at_once=lambda number: True) as guard:
        try:
            with telling(console, "preparing") as tell, own_user_errors():
                found = bench(
                    subject.maml,
                    subject.episodes,
                    **_arguments(subject, flags),
                    test=subject.test,
                    test_episodes=test_episodes,
                    optimizer=subject.optimizer,
                    title=subject.title,
                    progress=tell,
                    changed=keep,
                )
        except KeyboardInterrupt:
            print("Interrupted before anything was measured.", file=sys.stderr)
            return guard.exit_code
    said = keep.whole(found)
    _show(console, found)
    console.print(said, markup=False, soft_wrap=True)
    return guard.exit_code if found.interrupted else 0


def _arguments(subject: BenchSubject, flags: Swept) -> dict[str, Any]:
    """Of `bench`, from the flags.

    Raises:
        ValueError: a flag that cannot be obeyed.
    """
    if flags.accuracy is not None and flags.vs is not None and subject.test is None:
        raise BadInputError(
            f"--accuracy needs held-out episodes: let {subject.title} return "
            "(maml, episodes, optimizer, test); the optimizer may be None."
        )
    return {
        "methods": [method_of(name) for name in flags.methods],
        "steps": flags.sweep_steps,
        "tasks": flags.sweep_tasks or None,
        "backends": _or_own(flags.backends),
        "executors": _or_own(flags.executors),
        "vs": flags.vs,
        "budget": flags.budget,
        "repeats": flags.repeats,
        "seconds": flags.seconds,
        "accuracy": flags.accuracy,
    }


class _Keeper:
    """Writes what is done so far, for a process that may be ended at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, sweep: Any) -> None:
        """Write the sweep's numbers to the folder."""
        try:
            sweep.save_numbers(self.folder)
        except OSError as error:
            raise BadInputError(f"--out {self.folder} cannot be written: {error}") from error

    def whole(self, sweep: Any) -> str:
        """The numbers and the picture; a line on what was written."""
        self(sweep)
        try:
            names = ", ".join(path.name for path in sweep.save(self.folder))
        except ImportError:
            names = (
                "bench.json. No bench.png, as matplotlib is not installed: "
                'pip install "fastmaml[plot]"'
            )
        return f"Written to {self.folder}: {names}."


def _show(console: Any, found: Any) -> None:
    if any(table.framed_width > console.width for table in found.tables):
        console.print(str(found), markup=False, soft_wrap=True)
        return
    console.print(found.heading, markup=False, soft_wrap=True)
    for table in found.tables:
        table.show(console)
    for line in found.remarks:
        console.print(line, markup=False, soft_wrap=True)


def method_of(name: str) -> GradientMethod:
    """From "unrolled", or "mixed-mode:3+offload" for 3 segments that wait on the CPU.

    Raises:
        ValueError: there is no such method.
    """
    short, plus, offload = name.partition("+")
    kind, _, number = short.partition(":")
    there = not plus or (offload == "offload" and kind in OFFLOADING)
    for known in METHOD_NAMES:
        if kind == known and there and (not number or (number.isdecimal() and kind in NUMBERED)):
            return named(known, int(number) if number else None, bool(plus))
    raise ValueError(
        f"--methods {name}: choose from {', '.join(METHOD_NAMES)}; {', '.join(NUMBERED)} take a "
        f"number, such as mixed-mode:3; {' and '.join(OFFLOADING)} take +offload."
    )


def _or_own(names: tuple[str, ...]) -> list[str | None] | None:
    return [None if name == "auto" else name for name in names] or None
