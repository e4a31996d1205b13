"""The recipe of tables: a small network on tasks of a table's rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from fastmaml import episodes, models
from fastmaml.episodes import Table as TableSource
from fastmaml.episodes.table_columns import columns_of
from fastmaml.episodes.table_files import NamedColumns
from fastmaml.heads import Head
from fastmaml.training.config import TableConfig
from fastmaml.training.config.numbers import range_of
from fastmaml.training.metrics import Choice, Kind, RootMeanSquare, chosen, suited
from fastmaml.training.recipes.base import Recipe
from fastmaml.training.recipes.intents import words


@final
@dataclass(frozen=True)
class Table(Recipe):
    """Users, shops, patients: whatever has rows of its own."""

    config: TableConfig

    @cached_property
    def columns(self) -> NamedColumns:
        """The file's columns, read once."""
        if not self.config.data:
            raise ValueError("data='': give a table, such as --data users.csv.")
        return columns_of(self.config.data)

    @cached_property
    def _trained(self) -> TableSource:
        """The training tasks, for what is known of them."""
        return self._source("train", 0, torch.device("cpu"))

    @property
    def _kind(self) -> Kind:
        """What metrics call these tasks."""
        found = self._trained
        if found.kind == "classification":
            return "classification"
        return "regression" if found.outputs == 1 else "other"

    def model(self) -> nn.Module:
        """A multi-layer perceptron from the columns to the targets or classes."""
        widths = tuple(_whole("hidden_layers", n) for n in words(self.config.hidden_layers))
        found = self._trained
        return models.mlp(found.features, found.outputs, hidden=widths)

    def loss(self) -> Callable[[Any, Any], Tensor]:
        """That of the target's kind."""
        return self._trained.loss

    def scope(self, model: nn.Module) -> str:
        """What adapts, as the configuration says."""
        return self.config.scope

    def head(self) -> Head | None:
        """None: the model keeps its own last layer."""
        return None

    def metrics(self) -> Choice:
        """What the configuration names; else how far off a single value is, or right labels.

        How far off is in the units of the target.
        """
        moments = [*self._trained.scaling.targets.values()]
        usual = "rmse" if len(moments) == 1 else None
        if self._trained.kind == "multi-label":
            usual = "label_accuracy"
        asked = self.config.metrics or usual
        found = chosen(asked).everywhere
        if asked is not None:
            suited(asked, {"every task": self._kind})  # which raises
        if len(moments) != 1:
            return Choice(found)
        own = RootMeanSquare(unit=moments[0][1])
        return Choice(tuple(own if isinstance(x, RootMeanSquare) else x for x in found))

    @property
    def validated(self) -> bool:
        """Where tasks are held out for it."""
        config = self.config
        if config.split_column is not None:
            said = {str(x).strip().lower() for x in self.columns.column(config.split_column)}
            return bool(said & {"validation", "val", "valid", "dev"})
        return _held("validation_tasks", config.validation_tasks) not in (0, 0.0, [])

    def check_source(self, source: Any, state: Any, moved: bool) -> None:
        """Raise a ValueError where the table, its training tasks or the scaling are others."""
        self._trained.check_trained(state)

    def episodes(self, split: str, seed: int, device: torch.device) -> Any:
        """Meta-batches of the training tasks; of the others each task once."""
        found = self._source(split, seed, device)
        return found if split == "train" else found.all(self.config.tasks)

    def _source(self, split: str, seed: int, device: torch.device) -> TableSource:
        config = self.config
        return episodes.table(
            self.columns,
            task=config.task,
            target=words(config.target),
            inputs=None if config.inputs is None else words(config.inputs),
            split=split,
            shots=_shots(config.shots),
            queries="rest" if config.queries == "rest" else _whole("queries", config.queries),
            kind=config.kind,
            labels=config.labels,
            unequal=config.unequal,
            categorical=words(config.categorical),
            scale=config.scale,
            missing=config.missing,
            small=config.small,
            validation_tasks=_held("validation_tasks", config.validation_tasks),
            test_tasks=_held("test_tasks", config.test_tasks),
            tasks_seed=config.tasks_seed,
            split_column=config.split_column,
            seed=seed,
            device=device,
            dtype=getattr(torch, config.dtype),
            tasks=config.tasks if split == "train" else 1,
        )


def _shots(text: str) -> int | float | tuple[int, int]:
    """5, 0.5 or 5-20."""
    if "-" in text:
        return range_of("shots", text)
    found = _number("shots", text)
    return found if isinstance(found, int) or found < 1 else _whole("shots", text)


def _held(name: str, text: str) -> int | float | list[str]:
    """A share, a number, or names."""
    try:
        return _number(name, text)
    except ValueError:
        return words(text)


def _number(name: str, text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: give a number, such as 5 or 0.5.") from None


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: give a whole number.") from None
