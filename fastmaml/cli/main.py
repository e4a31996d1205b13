"""What the commands do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastmaml.cli.bench_flags import Bench, BenchModule
from fastmaml.cli.bench_plan import BenchPlan
from fastmaml.cli.errors import BadInputError, RunFailedError, run_errors, user_errors
from fastmaml.cli.flags import Evaluate, Train, parse
from fastmaml.cli.language_flags import Adapt, Export
from fastmaml.cli.profile_flags import Profile, ProfileModule
from fastmaml.cli.runs import checkpoint_in, config_of, is_moved, load_into, tested_in
from fastmaml.training.config import RunConfig, read_toml
from fastmaml.training.config.toml import assignments
from fastmaml.training.presets import PRESETS, mamlpp_defaults
from fastmaml.training.ranks import Ranks, joined, writes

_Measuring = TypeVar("_Measuring", Profile, Bench)

FAILED, BAD_INPUT = 1, 2
"""Exit codes: training failed; what was asked for cannot be done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0, 1 where training failed, 2 for bad input, 128 + signal if interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = parse(arguments, PRESETS)
        if isinstance(command, Train):
            return _train(*_layered(command, arguments))
        if isinstance(command, Evaluate):
            return _evaluate(command)
        if isinstance(command, Profile | ProfileModule):
            return _profile(command, arguments)
        if isinstance(command, Bench | BenchModule):
            return _bench(command, arguments)
        if isinstance(command, BenchPlan):
            from fastmaml.cli import bench_plan

            return bench_plan.run(command)
        if isinstance(command, Export | Adapt):
            from fastmaml.cli import language

            return language.run(command)
        return _info()
    except BadInputError as error:
        if writes():
            print(f"fastmaml: {error}", file=sys.stderr)
        return BAD_INPUT
    except RunFailedError as error:
        print(f"fastmaml: {error}", file=sys.stderr)
        return FAILED


def _train(config: RunConfig, checkpoint: Path | None) -> int:
    """In this process, or as one of those that torchrun started."""
    from fastmaml.training.recipes import resolve_device

    with user_errors():
        device = resolve_device(config.device)
    with joined(device.type == "cuda"):
        return _fit(config, checkpoint, Ranks.here(device))


def _fit(config: RunConfig, checkpoint: Path | None, ranks: Ranks) -> int:
    from fastmaml.cli.advice import on_cpu
    from fastmaml.engine.base.errors import NonFiniteLoss
    from fastmaml.training.interrupts import Interrupted
    from fastmaml.training.recipes import build_trainer
    from fastmaml.training.recipes.hub import stage

    with user_errors(), ranks.together():  # once it runs, an error keeps its traceback
        trainer = build_trainer(config)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        trainer.require_ready()
    if advice := on_cpu(config, trainer.maml):
        stage(advice)
    launch = f"torchrun --nproc-per-node {ranks.world} -m " if ranks.several else ""
    again = f"{launch}fastmaml train {config.dataset} --resume {trainer.folder}"
    try:
        with run_errors(again, trainer.folder):
            trainer.fit()
    except Interrupted as stop:
        said = f"Stopped after iteration {trainer.iteration}. Go on with: {again}"
        code = 128 + stop.signal
    except NonFiniteLoss as error:
        said = f"fastmaml: {error}\nIteration {trainer.iteration} was saved: {again}"
        code = FAILED
    else:
        return 0
    if ranks.first:
        print(said, file=sys.stderr)
    return code


def _evaluate(command: Evaluate) -> int:
    from rich.console import Console

    from fastmaml.training import checkpoint, recipes, run_folder
    from fastmaml.training.evaluation import extent
    from fastmaml.training.progress import progress_bar

    with user_errors():
        path = tested_in(command.checkpoint)
        saved = checkpoint.load(path)
        config = config_of(path, saved.config).updated({"device": command.device}, "--device")
        change = assignments(command.change)
        if moved := {"classes_seed", "tasks_seed"} & set(change):
            raise ValueError(
                f"--change {min(moved)}=...: others would be held out, so that the run was trained "
                "on some that it is tested on. Train with it, or test on other data."
            )
        own = getattr(config, "data", None)
        config = config.updated(change, "--change")
        elsewhere = is_moved(own, getattr(config, "data", None))
        maml, evaluate = recipes.build_evaluator(
            config, command.split, command.seed, saved.state["episodes"], elsewhere
        )
        load_into(maml, saved.weights, path)
        count, steps = _extent(command, config, maml.steps)
        count = extent(evaluate, count)
    console = Console()
    with run_errors(), progress_bar(console, f"{command.split} episodes", 0, count) as show:
        found = evaluate(count, steps, lambda done: show(done, ""))
    title = f"{config.full_title}, iteration {saved.iteration}, {command.split} episodes"
    run_folder.show_evaluation(console, found, title)
    return 0


def _extent(command: Evaluate, config: RunConfig, trained: int) -> tuple[int, int]:
    """How many episodes and inner steps: those of the flags, else those of the run's own test."""
    own = config.validation_episodes if command.split == "validation" else config.test_episodes
    count = own if command.episodes is None else command.episodes
    after = trained if config.eval_steps is None else config.eval_steps
    steps = after if command.steps is None else command.steps
    if count < 1 or steps < 0:
        raise ValueError(
            f"episodes={count}, steps={steps}: give at least 1 episode and 0 inner steps."
        )
    return count, steps


def _profile(command: Profile | ProfileModule, arguments: Sequence[str]) -> int:
    from fastmaml.cli import profile

    if isinstance(command, ProfileModule):
        return profile.run(profile.of_factory(command), command)
    with user_errors():
        command = _over_file(command, arguments)
        subject = profile.configured(command.configuration())
    return profile.run(subject, command)


def _bench(command: Bench | BenchModule, arguments: Sequence[str]) -> int:
    from fastmaml.cli import bench

    if isinstance(command, BenchModule):
        return bench.run(bench.of_factory(command), command)
    with user_errors():
        command = _over_file(command, arguments)
        config = command.configuration()
        subject = bench.configured(config)
    return bench.run(subject, command, config.test_episodes)


def _over_file(command: _Measuring, arguments: Sequence[str]) -> _Measuring:
    """The command with its flags over those of its TOML file, if it names one."""
    if command.config is None:
        return command
    base = PRESETS[command.dataset].updated(read_toml(command.config), str(command.config))
    found: _Measuring = parse(arguments, {**PRESETS, base.dataset: base})
    return found


def _info() -> int:
    from rich.console import Console
    from rich.table import Table

    from fastmaml import _environment as here
    from fastmaml.engine.recording.executors import EXECUTORS
    from fastmaml.ops import _not_built

    build = f"to build it: {_not_built.command()}"
    table = Table(show_header=False)
    for name, version in here.versions().items():
        table.add_row(name, version)
    table.add_section()
    for device in here.devices():
        table.add_row("device", here.describe_device(device))
    for kind, parts in (("backend", here.backends()), ("executor", EXECUTORS)):
        table.add_section()
        for name, state in parts.items():
            table.add_row(f"{kind} {name}", state.replace(build, "see below"))
    console = Console(highlight=False)
    console.print(table)
    if any(build in state for state in here.backends().values()):
        console.print(build[0].upper() + build[1:], soft_wrap=True, markup=False)
    return 0


def _plus_plus(base: RunConfig, command: Any, arguments: Sequence[str]) -> RunConfig:
    """The defaults with those of MAML++ over them, as far as the number of iterations goes."""
    if command.resume is not None:
        raise ValueError(
            "--mamlpp with --resume: a run goes on as it was begun. Leave --mamlpp out; to train "
            "anew with it, leave --resume out."
        )
    named = {} if command.config is None else read_toml(command.config)
    first = base.updated(named, str(command.config))
    iterations = parse(arguments, {**PRESETS, command.dataset: first}).configuration().iterations
    return base.updated(mamlpp_defaults(command.dataset, iterations), "--mamlpp")


def _layered(command: Any, arguments: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """The configuration from preset, checkpoint, TOML file and flags, the later ones winning."""
    from fastmaml.training.checkpoint import load

    with user_errors():
        base, checkpoint = PRESETS[command.dataset], None
        if command.resume is not None:
            given = command.resume[0] if command.resume else command.folder
            checkpoint = checkpoint_in(given, ", or train without --resume")
            base = config_of(checkpoint, load(checkpoint).config)
            base = base.updated({"out": str(checkpoint.parent)}, "--resume")
        if getattr(command, "plus_plus", False):
            base = _plus_plus(base, command, arguments)
        if command.config is not None:
            base = base.updated(read_toml(command.config), str(command.config))
        if base.dataset != command.dataset:
            raise ValueError(
                f"`fastmaml train {command.dataset}` was given a configuration with "
                f"dataset={base.dataset!r}: type `fastmaml train {base.dataset}` instead."
            )
        found = parse(arguments, {**PRESETS, command.dataset: base})
        return found.configuration(), checkpoint
