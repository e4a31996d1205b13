"""What ``fastmaml bench`` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from fastmaml.cli.bench_flags import BenchModule, Swept
from fastmaml.cli.factory import load_factory
from fastmaml.config import RunConfig
from fastmaml.gradients import (
    Checkpointed,
    FirstOrder,
    GradientMethod,
    MixedMode,
    Reptile,
    Truncated,
    Unrolled,
)
from fastmaml.maml import MAML

INTERRUPTED = 130
"""Exit code: 128 and the number of SIGINT."""

PLAIN: dict[str, Callable[[], GradientMethod]] = {
    "unrolled": Unrolled,
    "checkpointed": Checkpointed,
    "mixed-mode": MixedMode,
    "first-order": FirstOrder,
    "truncated": lambda: Truncated(1),
    "reptile": Reptile,
}
NUMBERED: dict[str, Callable[[int], GradientMethod]] = {
    "checkpointed": Checkpointed,
    "mixed-mode": MixedMode,
    "truncated": Truncated,
}


@dataclass(frozen=True)
class Subject:
    """What is measured: the arguments of `bench` that the command's flags do not hold."""

    title: str
    maml: MAML
    episodes: Any
    test: Iterable[Any] | None
    optimizer: Optimizer | None
    folder: Path


def configured(config: RunConfig) -> Subject:
    """Of a data set by name."""
    from fastmaml.recipes import build_trainer

    trainer = build_trainer(config)
    return Subject(
        config.title, trainer.maml, trainer.train, trainer.test, trainer.optimizer, trainer.folder
    )


def of_factory(command: BenchModule) -> Subject:
    """Of a function of the user's own."""
    maml, episodes, optimizer = load_factory(command.factory)
    return Subject(command.factory, maml, episodes, None, optimizer, Path(command.out))


def run(subject: Subject, flags: Swept, test_episodes: int = 200) -> int:
    """Measure, print, write; the exit code.

    Raises:
        ValueError: a flag that cannot be obeyed.
    """
    from rich.console import Console

    from fastmaml.sweeps import bench, bytes_of

    console = Console(highlight=False)
    arguments: dict[str, Any] = {
        "methods": [_method(name) for name in flags.methods],
        "steps": flags.sweep_steps,
        "tasks": flags.sweep_tasks or None,
        "backends": _or_own(flags.backends),
        "executors": _or_own(flags.executors),
        "budget": None if flags.budget is None else bytes_of(flags.budget),
    }
    try:
        with console.status("preparing") as status:
            found = bench(
                subject.maml,
                subject.episodes,
                **arguments,
                vs=flags.vs,
                repeats=flags.repeats,
                seconds=flags.seconds,
                accuracy=flags.accuracy,
                test=subject.test,
                test_episodes=test_episodes,
                optimizer=subject.optimizer,
                title=subject.title,
                progress=status.update,
            )
    except KeyboardInterrupt:
        print("Interrupted before anything was measured.", file=sys.stderr)
        return INTERRUPTED
    _show(console, found)
    _write(console, found, subject.folder)
    return INTERRUPTED if found.interrupted else 0


def _show(console: Any, found: Any) -> None:
    if any(table.framed_width > console.width for table in found.tables):
        console.print(str(found), markup=False, soft_wrap=True)
        return
    console.print(found.heading, markup=False, soft_wrap=True)
    for table in found.tables:
        table.show(console)
    for line in found.remarks:
        console.print(line, markup=False, soft_wrap=True)


def _write(console: Any, found: Any, folder: Path) -> None:
    try:
        names = ", ".join(path.name for path in found.save(folder))
    except ImportError:
        names = "bench.json"
        console.print(
            'No bench.png, as matplotlib is not installed: pip install "fastmaml[plot]"',
            markup=False,
        )
    console.print(f"Written to {folder}: {names}.", markup=False, soft_wrap=True)


def _method(name: str) -> GradientMethod:
    """From "unrolled", or "mixed-mode:3" for a number of segments."""
    kind, _, number = name.partition(":")
    if not number and kind in PLAIN:
        return PLAIN[kind]()
    if number.isdecimal() and kind in NUMBERED:
        return NUMBERED[kind](int(number))
    raise ValueError(
        f"--methods {name}: choose from {', '.join(PLAIN)}; {', '.join(NUMBERED)} take a number, "
        "such as mixed-mode:3."
    )


def _or_own(names: tuple[str, ...]) -> list[str | None] | None:
    return [None if name == "auto" else name for name in names] or None
