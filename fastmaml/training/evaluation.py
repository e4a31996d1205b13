"""How well adaptation works on episodes that were not trained on, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmaml.episodes.batch import Episodes
from fastmaml.episodes.named import NamedEpisodes
from fastmaml.training.intervals import half_width

if TYPE_CHECKING:
    from fastmaml.maml import MAML


@dataclass(frozen=True)
class Evaluation:
    """A metric before adaptation and after each step of it, averaged over episodes.

    Attributes:
        metric: "accuracy" (a share, 0 to 1) where targets are classes, else "loss"; "return" of
            policies.
        means: one number for 0, 1, ..., steps of adaptation.
        intervals: half the width of the 95% confidence interval of each mean over episodes, by
            Student's t (nan for a single one).
        episodes: how many episodes.
        chance: the accuracy of guessing, or None; of policies the return of an untrained one.
        by_name: the same for the tasks of each name, where `NamedEpisodes` have several.
    """

    metric: str
    means: list[float]
    intervals: list[float]
    episodes: int
    chance: float | None
    by_name: Mapping[str, Evaluation] = field(default_factory=dict)

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
        found = {
            self.metric: self.means[-1],
            "interval_95": self.intervals[-1],
            "no_adaptation": self.means[0],
            "no_adaptation_interval_95": self.intervals[0],
            "chance": self.chance,
            "episodes": self.episodes,
            "steps": self.steps,
            "per_step": self.means,
            "per_step_interval_95": self.intervals,
        }
        by_name = {name: one.as_dict() for name, one in self.by_name.items()}
        return found | ({"by_name": by_name} if by_name else {})


def format_metric(metric: str, mean: float, interval: float | None = None) -> str:
    """An accuracy in per cent, or a loss with three digits, with its interval if there is one."""
    if metric == "accuracy":
        return f"{mean:.1%}" if interval is None else f"{100 * mean:.1f} ± {100 * interval:.1f}%"
    return f"{mean:.3g}" if interval is None else f"{mean:.3g} ± {interval:.2g}"


def quantity(metric: str) -> str:
    """What is measured, as tables and axes call it."""
    return metric if metric == "return" else f"query {metric}"


def evaluate(
    maml: MAML,
    episodes: Iterator[Episodes],
    count: int,
    steps: int,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Adapt to `count` episodes and measure on their query sets, without graphs.

    Where some tasks are regressions, the accuracy is that of the others. In evaluation mode (no
    dropout). Modes and PyTorch's random state are as before afterwards, so that evaluating changes
    no training run.

    Args:
        maml: what to evaluate; its parameters do not change.
        episodes: meta-batches of unseen tasks.
        count: how many episodes, from as many meta-batches as that takes.
        steps: inner steps.
        after_batch: called with the number of episodes done, after each meta-batch.
    """
    parts: list[_Scores] = []
    done = 0
    with evaluating(maml):
        while done < count:
            batch = next(episodes, None)
            if batch is None:
                raise ValueError(f"the episodes to evaluate on ended after {done} of {count}.")
            parts.append(_measure(maml, batch, steps))
            done = min(done + len(batch), count)
            after_batch(done)
    found = _Scores(
        torch.cat([part.losses for part in parts])[:count],
        torch.cat([part.accuracies for part in parts])[:count],
        torch.cat([part.chances for part in parts])[:count],
        [name for part in parts for name in part.names][:count],
    )
    names = dict.fromkeys(found.names)
    by_name = {name: found.only(name).summary() for name in names} if len(names) > 1 else {}
    return replace(found.summary(), by_name=by_name)


@dataclass(frozen=True)
class _Scores:
    """Of every episode: losses and accuracies (nan: none) ``[episodes, steps + 1]``, and more."""

    losses: Tensor
    accuracies: Tensor
    chances: Tensor
    names: list[str]

    def only(self, name: str) -> _Scores:
        rows = torch.tensor([x == name for x in self.names])
        return _Scores(self.losses[rows], self.accuracies[rows], self.chances[rows], [])

    def summary(self) -> Evaluation:
        """The accuracy of the episodes that have one, or else the loss of all."""
        classified = ~self.accuracies[:, 0].isnan()
        if not classified.any():
            return averaged("loss", self.losses, None)
        chance = self.chances[classified].mean().item()
        return averaged("accuracy", self.accuracies[classified], chance)


def _measure(maml: MAML, batch: Episodes, steps: int) -> _Scores:
    outputs = maml.evaluate_each_step(batch, steps)
    losses = torch.stack([x.losses.detach().double().cpu() for x in outputs], dim=1)
    accuracies, found = torch.full_like(losses, math.nan), [x.accuracies for x in outputs]
    if found[0] is not None:
        accuracies = torch.stack([x.detach().double().cpu() for x in found if x is not None], dim=1)
    names = list(batch.names) if isinstance(batch, NamedEpisodes) else []
    return _Scores(losses, accuracies, _chances(batch), names)


def _chances(batch: Episodes) -> Tensor:
    """``[tasks]``: one over the number of classes, where targets are classes."""
    targets = batch.query.targets
    if isinstance(targets, Mapping) and "classes" in targets:
        return 1 / targets["classes"].flatten().double().cpu()
    if not isinstance(targets, Tensor):
        return torch.full((len(batch),), math.nan, dtype=torch.float64)
    return torch.full((len(batch),), 1 / targets[0].unique().numel(), dtype=torch.float64)


def averaged(metric: str, table: Tensor, chance: float | None) -> Evaluation:
    """Means and intervals of ``[episodes, steps + 1]``."""
    count = len(table)
    spread = table.std(0) if count > 1 else torch.full_like(table[0], math.nan)
    intervals = half_width(spread, count)
    return Evaluation(metric, table.mean(0).tolist(), intervals.tolist(), count, chance)


@contextmanager
def evaluating(maml: MAML) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's mode and the random state are as before."""
    modes = [(module, module.training) for module in maml.modules()]
    used = {p.device for p in maml.parameters() if p.device.type == "cuda"}
    maml.eval()
    try:
        with torch.random.fork_rng(devices=sorted(device.index or 0 for device in used)):
            yield
    finally:
        for module, training in modes:
            module.training = training
