"""Metrics of regressions: how far off predictions are, and how they go with values, by scipy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch

from fastmaml.training.metrics.answers import Answers
from fastmaml.training.metrics.base import Metric, scipy_stats


@final
@dataclass(frozen=True)
class RootMeanSquare(Metric):
    """The root of a task's mean squared error, in the units of the targets.

    Args:
        unit: how many of these a target of 1 stands for, such as the deviation that targets were
            scaled by.
    """

    unit: float = 1.0
    name = "rmse"
    kinds = ("regression",)
    lower_is_better = True

    def value(self, answers: Answers) -> float:
        """Of one value an example."""
        error = (answers.predicted_values - answers.values).square().mean().sqrt()
        return error.item() * self.unit


@final
@dataclass(frozen=True)
class Pearson(Metric):
    """Pearson's correlation of predictions and right values, scipy's ``pearsonr``.

    Where all predictions or all right values are alike, it is not defined: that counts as 0.
    """

    name = "pearson"
    kinds = ("regression",)

    def __post_init__(self) -> None:
        scipy_stats(self.name)

    def value(self, answers: Answers) -> float | None:
        """None for fewer than two examples."""
        return _correlation(answers, scipy_stats(self.name).pearsonr)


@final
@dataclass(frozen=True)
class Spearman(Metric):
    """Spearman's correlation, that of the ranks, scipy's ``spearmanr``; else as `Pearson`."""

    name = "spearman"
    kinds = ("regression",)

    def __post_init__(self) -> None:
        scipy_stats(self.name)

    def value(self, answers: Answers) -> float | None:
        """None for fewer than two examples."""
        return _correlation(answers, scipy_stats(self.name).spearmanr)


def _correlation(answers: Answers, measure: Any) -> float | None:
    right, said = answers.values.cpu(), answers.predicted_values.cpu()
    if len(right) < 2:
        return None
    if not torch.stack((right, said)).isfinite().all():
        return math.nan
    if (right == right[0]).all() or (said == said[0]).all():
        return 0.0
    return float(measure(said.numpy(), right.numpy()).statistic)
