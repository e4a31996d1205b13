"""The recipe of intents: few-shot tasks over the classes of labelled texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from fastmaml import episodes
from fastmaml.training.config import IntentsConfig
from fastmaml.training.recipes.hub import tell
from fastmaml.training.recipes.text import Text


@final
@dataclass(frozen=True)
class Intents(Text):
    """Few-shot tasks over the classes of labelled texts."""

    config: IntentsConfig

    @property
    def classes(self) -> int:
        """The number of logits: as many as a task has ways."""
        return self.config.ways

    @property
    def validated(self) -> bool:
        """Where classes are held out for it."""
        return self.config.validation_classes > 0

    def episodes(self, split: str, seed: int, device: torch.device) -> Any:
        """Of the data set's classes; in the test, the other data set's in turn with them."""
        config, common = self.config, self.common(seed, device)
        tell("data set", config.data)
        common |= {"ways": config.ways, "shots": config.shots, "queries": config.queries}
        common |= {"tasks": config.tasks, "leave_out": words(config.leave_out)}
        held: dict[str, Any] = {
            "validation_classes": config.validation_classes,
            "test_classes": config.test_classes,
            "classes_seed": config.classes_seed,
            **self.columns(),
        }
        if split != "test":
            return episodes.text(config.data, split=split, **held, **common)
        return episodes.InTurn(self._tests(held, common))

    def columns(self) -> dict[str, Any]:
        """As configured."""
        return _found_by(self.config.rows, self.config.text, self.config.label)

    def _tests(self, held: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
        config, sources = self.config, {}
        if config.test_classes:
            source = episodes.text(config.data, split="test", **held, **common)
            sources[short(config.data)] = source
        if config.test_data is not None:
            tell("data set", config.test_data)
            own = _found_by(
                _first(config.test_rows, config.rows),
                _first(config.test_text, config.text),
                _first(config.test_label, config.label),
            )
            source = episodes.text(config.test_data, **own, **common)
            sources[short(config.test_data, *sources)] = source
        if not sources:
            raise ValueError(
                "there is nothing to test on: give test_classes, or other data as test_data."
            )
        return sources


def _first(own: str | None, other: str | None) -> str | None:
    return other if own is None else own


def _found_by(rows: str | None, text: str | None, label: str | None) -> dict[str, Any]:
    """Which rows and columns of a data set."""
    return {"rows": words(rows) or None, "text": words(text) or None, "label": label or None}


def words(text: str | None) -> list[str]:
    """What commas divide."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def short(data: str, *taken: str) -> str:
    """A data set's name for reports."""
    name = Path(data).name.split(".")[0]
    return data if name in taken else name
