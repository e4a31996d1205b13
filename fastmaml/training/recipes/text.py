"""What the recipes of pretrained language models have in common."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml import heads, losses
from fastmaml.engine.model.scope import Scope
from fastmaml.episodes import text_task
from fastmaml.episodes.batch import Batch
from fastmaml.episodes.class_names import ClassNames
from fastmaml.episodes.tables import read_table
from fastmaml.integrations import transformers
from fastmaml.training.config import LanguageConfig, TextConfig
from fastmaml.training.metrics import Choice, chosen, suited
from fastmaml.training.recipes.base import Recipe
from fastmaml.training.recipes.hub import tell


@dataclass(frozen=True)
class Language(Recipe):
    """What all runs with a pretrained language model have."""

    config: LanguageConfig

    def scope(self, model: nn.Module) -> Scope:
        """As configured; the names that language models have besides the usual ones are known."""
        scope = self.config.scope
        if last := re.fullmatch(r"last-(\d+)", scope):
            return transformers.last_layers(model, int(last[1]))
        if scope == "bias":
            return transformers.bias(model)
        return transformers.lora(model) if scope == "lora" else scope

    def tokenizer(self) -> Any:
        """The tokenizer that belongs to the model."""
        return transformers.tokenizer(self.config.model)

    @abstractmethod
    def new_task(
        self, data: str, limit: int | None, classes: Sequence[str] | None = None
    ) -> tuple[Batch, Sequence[str]]:
        """All examples of a task that was not trained on, ``[examples, ...]``, and its classes.

        Args:
            data: its rows, in the form of the run's.
            limit: no more examples than this, drawn with the run's seed.
            classes: their names in order; None for those that occur. Empty where there are none.

        Raises:
            ValueError: more classes than the model has logits, or as the run's own data.
        """

    def finished(self, learner: nn.Module, classes: Sequence[str]) -> nn.Module:
        """The adapted model as one for this task alone."""
        return learner

    def metrics_of_one(self) -> Choice:
        """What is measured of a task that was not trained on, and has no name of its own."""
        return self.metrics()

    def common(self, seed: int, device: torch.device) -> dict[str, Any]:
        """What all sources of text are given."""
        config = self.config
        return {
            "tokenizer": self.tokenizer(),
            "max_length": config.max_length,
            "cache": True if config.cache is None else config.cache,
            "seed": seed,
            "device": device,
        }


@dataclass(frozen=True)
class Text(Language):
    """What all runs with a classifier of texts have."""

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

    def columns(self) -> dict[str, Any]:
        """Which columns and rows of a table are the run's; see `read_table`."""
        return {}

    def new_task(
        self, data: str, limit: int | None, classes: Sequence[str] | None = None
    ) -> tuple[Batch, Sequence[str]]:
        """The texts and labels of a table."""
        common = self.common(self.config.seed, torch.device("cpu"))
        table = read_table(data, **self.columns())
        found = ClassNames.found_in(table.labels, table.origin)
        if classes is None:
            classes = found.names
        elif other := [name for name in found.names if name not in classes]:
            raise ValueError(
                f"{table.origin} has the label {other[0]!r}, and the task's classes are "
                f"{', '.join(classes)}."
            )
        task = text_task(
            Path(data).name,
            data,
            common["tokenizer"],
            classes=classes,
            max_length=common["max_length"],
            cache=common["cache"],
            **self.columns(),
        )
        if task.classes > self.classes:
            raise ValueError(
                f"{data} has {task.classes} classes, and the model was trained with "
                f"{self.classes} logits: train with as many as the largest task to come."
            )
        texts, labels = task.support.tokens, task.support.labels
        rows = subset(len(labels), limit, self.config.seed)
        inputs = texts.batch(rows, texts.padded_length(rows))
        targets = {
            "labels": labels[rows],
            "values": torch.zeros(len(rows)),
            "classes": torch.tensor([task.classes]),
        }
        return Batch(inputs, targets), classes

    def finished(self, learner: nn.Module, classes: Sequence[str]) -> nn.Module:
        """With logits for these classes alone, which the model's configuration names."""
        return transformers.for_classes(learner, classes)


def subset(count: int, limit: int | None, seed: int) -> Tensor:
    """The numbers of at most `limit` of so many rows, drawn at random, in order."""
    if limit is None or limit >= count:
        return torch.arange(count)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return drawn[:limit].sort().values
