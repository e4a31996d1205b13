"""From a configuration to what it describes: model, MAML, episodes and trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch

from fastmaml.episodes import Episodes
from fastmaml.maml import MAML
from fastmaml.training.autocast import autocast
from fastmaml.training.config import (
    GlueConfig,
    ImagesConfig,
    InstructionsConfig,
    IntentsConfig,
    LanguageConfig,
    PolicyConfig,
    RunConfig,
    TableConfig,
    TrainConfig,
)
from fastmaml.training.evaluation import Evaluation, evaluate
from fastmaml.training.metrics import Choice
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.recipes import policies
from fastmaml.training.recipes.base import Converted, Recipe
from fastmaml.training.recipes.folder import Folder
from fastmaml.training.recipes.glue import Glue
from fastmaml.training.recipes.hub import stage
from fastmaml.training.recipes.images import Images
from fastmaml.training.recipes.instructions import Instructions
from fastmaml.training.recipes.intents import Intents
from fastmaml.training.recipes.parts import (
    gradient_of,
    resolve_device,
    rule_of,
    with_per_step_rows,
)
from fastmaml.training.recipes.table import Table
from fastmaml.training.trainer import MetaTrainer

HELD_OUT_SEEDS = {"validation": 1_000_001, "test": 1_000_002}
"""Whatever the run's seed, all runs are evaluated on the same episodes."""


def build_trainer(config: RunConfig) -> OuterLoop:
    """The whole run, ready to `fit` or `resume`; sets PyTorch's threads and its random seed.

    Raises:
        ValueError, FileNotFoundError, ConnectionError, ImportError: what the configuration asks
            for cannot be had; the message says why.
    """
    if not isinstance(config, PolicyConfig):
        return build_meta_trainer(config)
    _set_threads(config)
    return policies.build_trainer(config, resolve_device(config.device))


def build_meta_trainer(config: RunConfig) -> MetaTrainer:
    """The same of a run on episodes."""
    _set_threads(config)
    made = recipe(config)
    metrics = made.metrics()
    if isinstance(config, LanguageConfig):
        stage(f"loading the model {config.model}")
    maml = build_maml(config, made)
    if isinstance(config, LanguageConfig):
        stage(f"reading and tokenising {_read_by(config)}")
    return MetaTrainer(
        maml,
        build_episodes(config, "train", made=made),
        config=config,
        validation=build_episodes(config, "validation", made=made) if made.validated else None,
        test=build_episodes(config, "test", made=made),
        metrics=metrics,
    )


def build_maml(config: RunConfig, made: Recipe | None = None) -> MAML:
    """The data set's model in a `MAML`, initialised from the configuration's seed.

    Args:
        config: the configuration.
        made: its recipe, which may have read data already; None for a new one.
    """
    device = resolve_device(config.device)
    if isinstance(config, PolicyConfig):
        return policies.build_learner(config, device).maml
    found = recipe(config) if made is None else made
    torch.manual_seed(config.seed)
    dtype = found.dtype(getattr(torch, config.dtype))
    model = found.model()
    scope = found.scope(model)
    if config.per_step_batch_norm:
        model, scope = with_per_step_rows(model, config.inner_steps, scope)
    model = model.to(device=device, dtype=dtype)
    return MAML(
        model,
        steps=config.inner_steps,
        loss=found.loss(),
        rule=rule_of(config),
        gradient=gradient_of(config),
        scope=scope,
        head=found.head(),
        executor=None if config.executor == "auto" else config.executor,
        backend=None if config.backend == "auto" else config.backend,
        tasks_chunk=config.tasks_chunk,
    )


def build_episodes(
    config: RunConfig, split: str, seed: int | None = None, made: Recipe | None = None
) -> Iterable[Episodes]:
    """Meta-batches of a split: "train", "validation" or "test".

    Args:
        config: the configuration.
        split: whose classes or tasks do not overlap with the other splits'.
        seed: None for the configuration's in "train", and a fixed one elsewhere.
        made: as of `build_maml`.
    """
    if seed is None:
        seed = HELD_OUT_SEEDS.get(split, config.seed)
    found = recipe(config) if made is None else made
    source = found.episodes(split, seed, resolve_device(config.device))
    return source if config.dtype == "float32" else Converted(source, getattr(torch, config.dtype))


@final
@dataclass(frozen=True)
class Evaluator:
    """``evaluate(episodes, steps, after_batch)`` of a learner.

    Attributes:
        config: of its run.
        maml: the learner.
        source: what it is evaluated on.
        metrics: what else is measured.
    """

    config: RunConfig
    maml: MAML
    source: Iterable[Episodes]
    metrics: Choice

    def __call__(self, count: int, steps: int, *after: Callable[[int], None]) -> Evaluation:
        """As `fastmaml.training.evaluation.evaluate`, in the precision of the run."""
        with autocast(self.config, resolve_device(self.config.device)):
            return evaluate(self.maml, self.source, count, steps, *after, metrics=self.metrics)

    @property
    def total(self) -> int | None:
        """How many episodes a finite set has."""
        found: int | None = getattr(self.source, "total", None)
        return found


def build_evaluator(
    config: RunConfig,
    split: str,
    seed: int | None = None,
    trained_on: Any = None,
    moved: bool = False,
) -> tuple[MAML, Callable[..., Evaluation]]:
    """A learner to load weights into, and ``evaluate(episodes, steps, after_batch)`` of it.

    `after_batch` is called with the number of episodes done. Sets PyTorch's threads, as a run does.

    Args:
        config: the configuration.
        split: what to evaluate on.
        seed: of the episodes; see `build_episodes`.
        trained_on: the state of the training episodes of the run that is evaluated; None where
            nothing is known of them.
        moved: whether other data than the run's is asked for.

    Raises:
        ValueError: what is held out now was not in that run, or as `build_episodes`.
    """
    _set_threads(config)
    if isinstance(config, PolicyConfig):
        seed = HELD_OUT_SEEDS.get(split, config.seed) if seed is None else seed
        return policies.build_evaluator(config, resolve_device(config.device), seed)
    made = recipe(config)
    metrics = made.metrics()
    maml = build_maml(config, made)
    source = build_episodes(config, split, seed, made)
    if trained_on is not None:
        made.check_source(getattr(source, "source", source), trained_on, moved)
    return maml, Evaluator(config, maml, source, metrics)


def recipe(config: RunConfig) -> Recipe:
    """What this kind of data set needs."""
    if isinstance(config, TrainConfig):
        return Images(config)
    if isinstance(config, ImagesConfig):
        return Folder(config)
    if isinstance(config, IntentsConfig):
        return Intents(config)
    if isinstance(config, GlueConfig):
        return Glue(config)
    if isinstance(config, InstructionsConfig):
        return Instructions(config)
    if isinstance(config, TableConfig):
        return Table(config)
    raise ValueError(f"{type(config).__name__} describes no data set; give one of its subclasses.")


def _read_by(config: LanguageConfig) -> str:
    """The data that a run names, else its data set."""
    values = config.as_dict()
    given = [values[name] for name in ("data", "test_data") if values.get(name)]
    return " and ".join(given) or config.dataset


def _set_threads(config: RunConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
