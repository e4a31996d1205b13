"""`Text`: what the recipes of pretrained language models have in common."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml import heads, losses
from fastmaml.engine.model.scope import Scope
from fastmaml.integrations import transformers
from fastmaml.training.config import TextConfig
from fastmaml.training.metrics import Choice, chosen, suited
from fastmaml.training.recipes.base import Recipe
from fastmaml.training.recipes.hub import tell


@dataclass(frozen=True)
class Text(Recipe):
    """What all runs with a pretrained language model have."""

    config: TextConfig

    @property
    @abstractmethod
    def classes(self) -> int:
        """The number of the model's logits."""

    def model(self) -> nn.Module:
        """The pretrained model, with adapters where these adapt."""
        config = self.config
        tell("model", config.model)
        lora = transformers.Lora(config.lora_rank) if config.scope == "lora" else None
        return transformers.sequence_classifier(
            config.model, self.classes, pooling=config.pooling, dropout=config.dropout, lora=lora
        )

    def loss(self) -> Callable[[Any, Any], Tensor]:
        """Cross-entropy, or squared error, by task."""
        return losses.classification

    def scope(self, model: nn.Module) -> Scope:
        """As configured; the names that language models have besides the usual ones are known."""
        scope = self.config.scope
        if last := re.fullmatch(r"last-(\d+)", scope):
            return transformers.last_layers(model, int(last[1]))
        if scope == "bias":
            return transformers.bias(model)
        return transformers.lora(model) if scope == "lora" else scope

    def head(self) -> heads.Head | None:
        """The head that the configuration names; None for "shared"."""
        config = self.config
        if config.head == "shared":
            return None
        return heads.Zero() if config.head == "zero" else heads.Prototype(config.prototype_scale)

    def metrics(self) -> Choice:
        """Those that the configuration names, each of which has to be of classification."""
        if self.config.metrics is not None:
            suited(self.config.metrics, {"every task": "classification"})
        return chosen(self.config.metrics)

    def common(self, seed: int, device: torch.device) -> dict[str, Any]:
        """What all sources of text are given."""
        config = self.config
        return {
            "tokenizer": transformers.tokenizer(config.model),
            "max_length": config.max_length,
            "cache": True if config.cache is None else config.cache,
            "seed": seed,
            "device": device,
        }
