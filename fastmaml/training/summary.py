"""What an evaluation found: means and intervals over episodes, by name, and by metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.training.intervals import half_width

SHARES = (
    *("accuracy", "f1", "exact_match", "option"),
    *("label_accuracy", "label_f1", "label_match"),
)
"""The metrics that are shown in per cent."""


@final
@dataclass(frozen=True)
class OverNames:
    """The mean over data sets, in which each counts alike, however many episodes it has.

    Attributes:
        means: of the data sets' means, one number for 0, 1, ..., steps of adaptation.
        intervals: half the width of the 95% confidence interval of each over data sets, by
            Student's t: how far it would move with other data sets of their kind.
        names: of the data sets, at least two.
    """

    means: list[float]
    intervals: list[float]
    names: tuple[str, ...]

    def as_dict(self, metric: str) -> dict[str, Any]:
        """The numbers as plain dicts and lists, for JSON."""
        return _figures(metric, self.means, self.intervals) | {"names": list(self.names)}


@dataclass(frozen=True)
class Evaluation:
    """A metric before adaptation and after each step of it, averaged over episodes.

    Attributes:
        metric: "accuracy" (a share, 0 to 1) where targets are classes, else "loss"; "return" of
            policies; in `scores` the metric's name.
        means: one number for 0, 1, ..., steps of adaptation.
        intervals: half the width of the 95% confidence interval of each mean over episodes, by
            Student's t (nan for a single one). Where the episodes of a meta-batch share a draw, as
            those of ranges of ways or shots do, it is over meta-batches.
        episodes: how many episodes.
        chance: the accuracy of guessing among the classes that a task has, or None; of policies
            the return of an untrained one.
        by_name: the same for the tasks of each name, where `NamedEpisodes` have several.
        scores: by its name, each metric that was asked for, over the episodes that it is of.
        over_names: the mean over the data sets' means, where several have this metric; else None.
    """

    metric: str
    means: list[float]
    intervals: list[float]
    episodes: int
    chance: float | None
    by_name: Mapping[str, Evaluation] = field(default_factory=dict)
    scores: Mapping[str, Evaluation] = field(default_factory=dict)
    over_names: OverNames | None = None

    @property
    def chance_name(self) -> str:
        """What `chance` is called in tables."""
        return "untrained, adapted" if self.metric == "return" else "chance"

    @property
    def steps(self) -> int:
        """The number of adaptation steps."""
        return len(self.means) - 1

    def text(self, step: int = -1) -> str:
        """The metric after a step, the last by default: "91.3 ± 0.6%" or "0.31 ± 0.02"."""
        return format_metric(self.metric, self.means[step], self.intervals[step])

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain dicts and lists, for JSON."""
        found = _figures(self.metric, self.means, self.intervals)
        found |= {"chance": self.chance, "episodes": self.episodes, "steps": self.steps}
        if self.over_names is not None:
            found["over_names"] = self.over_names.as_dict(self.metric)
        for part in ("scores", "by_name"):
            inner = {name: one.as_dict() for name, one in getattr(self, part).items()}
            found |= {part: inner} if inner else {}
        return found


def _figures(metric: str, means: list[float], intervals: list[float]) -> dict[str, Any]:
    """An interval that there is none of is None: nan is no JSON."""
    known = [None if math.isnan(x) else x for x in intervals]
    return {
        metric: means[-1],
        "interval_95": known[-1],
        "no_adaptation": means[0],
        "no_adaptation_interval_95": known[0],
        "per_step": means,
        "per_step_interval_95": known,
    }


def format_metric(metric: str, mean: float, interval: float | None = None) -> str:
    """A share in per cent, or another number with three digits, with its interval if it has one.

    One episode has none (nan).
    """
    interval = None if interval is None or math.isnan(interval) else interval
    if metric in SHARES:
        return f"{mean:.1%}" if interval is None else f"{100 * mean:.1f} ± {100 * interval:.1f}%"
    return f"{mean:.3g}" if interval is None else f"{mean:.3g} ± {interval:.2g}"


def quantity(metric: str) -> str:
    """What is measured, as tables and axes call it."""
    return metric if metric == "return" else f"query {metric}"


def averaged(
    metric: str, table: Tensor, chance: float | None, draws: Sequence[int | None] = ()
) -> Evaluation:
    """Means and intervals of ``[episodes, steps + 1]``.

    Args:
        metric: what it is of.
        table: the numbers.
        chance: as of `Evaluation`.
        draws: of each episode, as of `Measured`; empty where each is a draw of its own.
    """
    means, intervals = _mean_and_interval(table, draws)
    return Evaluation(metric, means, intervals, len(table), chance)


def over_names(found: Mapping[str, Evaluation]) -> OverNames | None:
    """The mean of some data sets' means of one metric; None of fewer than two."""
    if len(found) < 2:
        return None
    table = torch.tensor([one.means for one in found.values()], dtype=torch.float64)
    return OverNames(*_mean_and_interval(table), tuple(found))


def _mean_and_interval(
    table: Tensor, draws: Sequence[int | None] = ()
) -> tuple[list[float], list[float]]:
    """Of episodes that share draws, the sums of what each draw adds to the mean are independent."""
    mean, count = table.mean(0), len(table)
    if any(draw is not None for draw in draws):
        names = [(i, None) if draw is None else (None, draw) for i, draw in enumerate(draws)]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        of_draw = torch.tensor([number[name] for name in names])
        sums = table.new_zeros(len(number), *table.shape[1:]).index_add_(0, of_draw, table - mean)
        table, count = mean + sums * (len(number) / count), len(number)
    spread = table.std(0) if count > 1 else torch.full_like(mean, math.nan)
    return mean.tolist(), half_width(spread, count).tolist()


def trained(lines: Sequence[Mapping[str, Any]], steps: int) -> Evaluation:
    """What the last hundred iterations of a run had on their query sets, after all steps.

    Args:
        lines: of ``metrics.jsonl``.
        steps: inner steps; of what was before the last nothing is known (nan).
    """
    last = [line for line in lines if "loss" in line][-100:]
    if not last:
        return Evaluation("loss", [math.nan], [math.nan], 0, None)
    metric = "accuracy" if all(line.get("accuracy") is not None for line in last) else "loss"
    table = torch.tensor([line[metric] for line in last], dtype=torch.float64)
    found = averaged(metric, table.unsqueeze(1), None)
    unknown = [math.nan] * steps
    return replace(found, means=[*unknown, *found.means], intervals=[*unknown, *found.intervals])
