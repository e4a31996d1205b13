"""From a configuration to what it describes: model, MAML, episodes and trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmaml import episodes, gradients, models, rules
from fastmaml.config import TrainConfig
from fastmaml.episodes import Episodes, EpisodeSource
from fastmaml.gradients import GradientMethod
from fastmaml.maml import MAML
from fastmaml.trainer import MetaTrainer

HELD_OUT_SEEDS = {"validation": 1_000_001, "test": 1_000_002}
"""Whatever the run's seed, all runs are evaluated on the same episodes."""


def build_trainer(config: TrainConfig) -> MetaTrainer:
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
        validation=build_episodes(config, "validation") if _has_validation(config) else None,
        test=build_episodes(config, "test"),
    )


def build_maml(config: TrainConfig) -> MAML:
    """The data set's model in a `MAML`, initialised from the configuration's seed."""
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    return MAML(
        _model(config).to(device, getattr(torch, config.dtype)),
        steps=config.inner_steps,
        loss=mean_square if config.data == "sinusoid" else F.cross_entropy,
        rule=_rule(config),
        gradient=_gradient(config),
        scope=config.scope,
        tasks_chunk=config.tasks_chunk,
    )


def build_episodes(config: TrainConfig, split: str, seed: int | None = None) -> Iterable[Episodes]:
    """Meta-batches of a split: "train", "validation" or "test".

    Args:
        config: the configuration.
        split: whose classes do not overlap with the other splits'.
        seed: None for the configuration's in "train", and a fixed one elsewhere.
    """
    if seed is None:
        seed = HELD_OUT_SEEDS.get(split, config.seed)
    device = resolve_device(config.device)
    sizes: dict[str, Any] = {
        "shots": config.shots,
        "queries": config.queries,
        "tasks": config.tasks,
    }
    source: EpisodeSource
    if config.data == "sinusoid":
        source = episodes.sinusoid(**sizes, seed=seed, device=device)
    elif config.data == "digits":
        source = episodes.digits(split, ways=config.ways, **sizes, seed=seed, device=device)
    else:
        source = episodes.omniglot(
            ways=config.ways,
            **sizes,
            split=split,
            root=config.root,
            protocol=config.protocol,
            validation_alphabets=_validation_alphabets(config),
            download=config.download,
            seed=seed,
            device=device,
        )
    return source if config.dtype == "float32" else _Converted(source, getattr(torch, config.dtype))


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


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    """The mean squared error, written out: `F.mse_loss` has no forward mode under vmap."""
    return (output - target).square().mean()


def _model(config: TrainConfig) -> nn.Module:
    if config.data == "sinusoid":
        return models.mlp(1, 1, hidden=(config.filters, config.filters))
    size = {"digits": 8, "omniglot": 28}[config.data]
    return models.conv4(config.ways, 1, config.filters, pool=config.pool, image_size=size)


def _rule(config: TrainConfig) -> rules.Rule:
    lr = config.inner_lr
    if config.rule == "momentum":
        return rules.Momentum(lr, config.inner_momentum)
    return {"sgd": rules.SGD, "adam": rules.Adam, "meta-sgd": rules.MetaSGD, "lslr": rules.LSLR}[
        config.rule
    ](lr)


def _gradient(config: TrainConfig) -> GradientMethod | None:
    match config.gradient:
        case "auto":
            return None
        case "unrolled":
            return gradients.Unrolled()
        case "checkpointed":
            return gradients.Checkpointed(config.segments)
        case "mixed-mode":
            return gradients.MixedMode(config.segments)
        case "first-order":
            return gradients.FirstOrder()
        case "truncated":
            return gradients.Truncated(config.last)
        case "reptile":
            return gradients.Reptile()


def _validation_alphabets(config: TrainConfig) -> int:
    return config.validation_alphabets if config.protocol == "alphabets" else 0


def _has_validation(config: TrainConfig) -> bool:
    if config.data == "omniglot" and config.protocol == "alphabets":
        return config.validation_alphabets > 0
    return True


class _Converted:
    """A source whose floating-point tensors come in another precision."""

    def __init__(self, source: EpisodeSource, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype

    def __iter__(self) -> Iterator[Episodes]:
        return (batch.to(dtype=self.dtype) for batch in self.source)

    def state_dict(self) -> dict[str, Tensor]:
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.source.load_state_dict(state)
