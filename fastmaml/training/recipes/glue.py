"""The recipe of GLUE: every task is a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from fastmaml.episodes import Mixture
from fastmaml.episodes.glue import CLASSES, TASKS, glue, place, task_names
from fastmaml.training.config import GlueConfig
from fastmaml.training.metrics import Choice, Kind, chosen, suited
from fastmaml.training.recipes.hub import tell
from fastmaml.training.recipes.text import Text

METRICS = dict.fromkeys(TASKS, "accuracy") | {
    "cola": "matthews",
    "mrpc": "f1,accuracy",
    "qqp": "f1,accuracy",
    "stsb": "pearson,spearman",
}
"""What GLUE itself measures of each task."""


@final
@dataclass(frozen=True)
class Glue(Text):
    """A transformer on the tasks of GLUE, with as many logits as the largest has classes."""

    config: GlueConfig

    @property
    def classes(self) -> int:
        """As many as a task has at most, so that any task can be tested on."""
        return CLASSES

    @property
    def validated(self) -> bool:
        """On the development rows of the tasks that are trained on."""
        return True

    def metrics(self) -> Choice:
        """Of each task those that the configuration names and that are of it, or GLUE's own."""
        config = self.config
        if config.metrics is None:
            return chosen(METRICS)
        names = [*task_names(config.train), *task_names(config.test)]
        kinds: dict[str, Kind] = {x: "classification" if TASKS[x] else "regression" for x in names}
        return suited(config.metrics, kinds)

    def metrics_of_one(self) -> Choice:
        """Accuracy alone, unless the configuration names some."""
        return chosen(self.config.metrics)

    def episodes(self, split: str, seed: int, device: torch.device) -> Mixture:
        """The tasks to train on, or in the test the other ones, all equally often."""
        config, common = self.config, self.common(seed, device)
        if isinstance(found := place(config.data), str):
            tell("data set", found)
        common |= {"data": config.data, "support": config.support, "balance": config.balance}
        if split == "train":
            return glue(
                config.train,
                query=config.query,
                tasks=config.tasks,
                sampling=config.sampling,
                **common,
            )
        names = task_names(config.test if split == "test" else config.train)
        shared = {*names} & {*task_names(config.train)}
        if split == "test" and shared:
            raise ValueError(
                f"{', '.join(sorted(shared))} is in train={config.train!r} and in "
                f"test={config.test!r}: a task that is tested on is held out."
            )
        return glue(
            names,
            query_from="dev",
            query=config.test_query,
            tasks=len(names) * -(-config.tasks // len(names)),
            sampling="equal",
            **common,
        )
