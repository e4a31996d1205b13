"""The recipe of images and sinusoids: small networks made from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmaml import episodes, models
from fastmaml.heads import Head
from fastmaml.training.config import TrainConfig
from fastmaml.training.metrics import Choice, chosen, suited
from fastmaml.training.recipes.base import Recipe


@final
@dataclass(frozen=True)
class Images(Recipe):
    """Digits, Omniglot and sinusoids."""

    config: TrainConfig

    def model(self) -> nn.Module:
        """A convolutional network, or for sinusoids two hidden layers."""
        config = self.config
        if config.dataset == "sinusoid":
            return models.mlp(1, 1, hidden=(config.filters, config.filters))
        size = {"digits": 8, "omniglot": 28}[config.dataset]
        return models.conv4(config.ways, 1, config.filters, pool=config.pool, image_size=size)

    def loss(self) -> Callable[[Any, Any], Tensor]:
        """Cross-entropy, or for sinusoids the mean squared error."""
        return mean_square if self.config.dataset == "sinusoid" else F.cross_entropy

    def scope(self, model: nn.Module) -> str:
        """What adapts, as the configuration says."""
        return self.config.scope

    def head(self) -> Head | None:
        """None: the model keeps its own last layer."""
        return None

    def metrics(self) -> Choice:
        """Those that the configuration names, each of which has to be of such tasks."""
        named = self.config.metrics
        if named is not None:
            sinusoid = self.config.dataset == "sinusoid"
            suited(named, {"every task": "regression" if sinusoid else "classification"})
        return chosen(named)

    @property
    def validated(self) -> bool:
        """Not where Omniglot's background alphabets are all trained on."""
        if self.config.dataset == "omniglot" and self.config.protocol == "alphabets":
            return self.config.validation_alphabets > 0
        return True

    def episodes(self, split: str, seed: int, device: torch.device) -> episodes.EpisodeSource:
        """The meta-batches of a split of the configured data set."""
        config = self.config
        sizes: dict[str, Any] = {
            "shots": config.shots,
            "queries": config.queries,
            "tasks": config.tasks,
        }
        if config.dataset == "sinusoid":
            return episodes.sinusoid(**sizes, seed=seed, device=device)
        if config.dataset == "digits":
            return episodes.digits(split, ways=config.ways, **sizes, seed=seed, device=device)
        alphabets = config.protocol == "alphabets"
        return episodes.omniglot(
            ways=config.ways,
            **sizes,
            split=split,
            root=config.root,
            protocol=config.protocol,
            validation_alphabets=config.validation_alphabets if alphabets else 0,
            download=config.download,
            seed=seed,
            device=device,
        )


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    """The mean squared error, written out: `F.mse_loss` has no forward mode under vmap."""
    return (output - target).square().mean()
