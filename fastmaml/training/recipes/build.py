"""From a configuration to what it describes: model, MAML, episodes and trainer."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fastmaml import rules
from fastmaml.episodes import Episodes
from fastmaml.gradients import GradientMethod
from fastmaml.gradients.names import NUMBERED, named
from fastmaml.maml import MAML
from fastmaml.training.config import GlueConfig, IntentsConfig, RunConfig, TrainConfig
from fastmaml.training.recipes.base import Converted, Recipe
from fastmaml.training.recipes.glue import Glue
from fastmaml.training.recipes.images import Images
from fastmaml.training.recipes.intents import Intents
from fastmaml.training.trainer import MetaTrainer

HELD_OUT_SEEDS = {"validation": 1_000_001, "test": 1_000_002}
"""Whatever the run's seed, all runs are evaluated on the same episodes."""


def build_trainer(config: RunConfig) -> MetaTrainer:
    """The whole run, ready to `fit` or `resume`; sets PyTorch's threads and its random seed.

    Raises:
        ValueError, FileNotFoundError, ConnectionError, ImportError: what the configuration asks
            for cannot be had; the message says why.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return MetaTrainer(
        build_maml(config),
        build_episodes(config, "train"),
        config=config,
        validation=build_episodes(config, "validation") if recipe(config).validated else None,
        test=build_episodes(config, "test"),
    )


def build_maml(config: RunConfig) -> MAML:
    """The data set's model in a `MAML`, initialised from the configuration's seed."""
    device, found = resolve_device(config.device), recipe(config)
    torch.manual_seed(config.seed)
    model = found.model().to(device, getattr(torch, config.dtype))
    return MAML(
        model,
        steps=config.inner_steps,
        loss=found.loss(),
        rule=_rule(config),
        gradient=_gradient(config),
        scope=found.scope(model),
        head=found.head(),
        executor=None if config.executor == "auto" else config.executor,
        backend=None if config.backend == "auto" else config.backend,
        tasks_chunk=config.tasks_chunk,
    )


def build_episodes(config: RunConfig, split: str, seed: int | None = None) -> Iterable[Episodes]:
    """Meta-batches of a split: "train", "validation" or "test".

    Args:
        config: the configuration.
        split: whose classes or tasks do not overlap with the other splits'.
        seed: None for the configuration's in "train", and a fixed one elsewhere.
    """
    if seed is None:
        seed = HELD_OUT_SEEDS.get(split, config.seed)
    source = recipe(config).episodes(split, seed, resolve_device(config.device))
    return source if config.dtype == "float32" else Converted(source, getattr(torch, config.dtype))


def recipe(config: RunConfig) -> Recipe:
    """What this kind of data set needs."""
    if isinstance(config, TrainConfig):
        return Images(config)
    if isinstance(config, IntentsConfig):
        return Intents(config)
    if isinstance(config, GlueConfig):
        return Glue(config)
    raise ValueError(f"{type(config).__name__} describes no data set; give one of its subclasses.")


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ValueError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r} cannot be used here ({reason}). `fastmaml info` lists the devices; "
            "--device cpu always works."
        ) from None
    return device


def _rule(config: RunConfig) -> rules.Rule:
    lr = config.inner_lr
    if config.rule == "momentum":
        return rules.Momentum(lr, config.inner_momentum)
    return {"sgd": rules.SGD, "adam": rules.Adam, "meta-sgd": rules.MetaSGD, "lslr": rules.LSLR}[
        config.rule
    ](lr)


def _gradient(config: RunConfig) -> GradientMethod | None:
    name = config.gradient
    if name == "auto":
        return None
    numbers = {"segments": config.segments, "last": config.last}
    return named(name, numbers[NUMBERED[name]] if name in NUMBERED else None)
