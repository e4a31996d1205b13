"""How well adaptation works on episodes that were not trained on, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmaml.episodes.batch import Episodes

if TYPE_CHECKING:
    from fastmaml.maml import MAML

NORMAL_95 = 1.959964
"""Half the width of a normal distribution's central 95%, in standard deviations."""


@dataclass(frozen=True)
class Evaluation:
    """A metric before adaptation and after each step of it, averaged over episodes.

    Attributes:
        metric: "accuracy" (a share, 0 to 1) where targets are classes, else "loss".
        means: one number for 0, 1, ..., steps of adaptation.
        intervals: half the width of the 95% confidence interval of each mean: 1.96 standard errors
            over episodes (nan for a single one).
        episodes: how many episodes.
        chance: the accuracy of guessing, or None.
    """

    metric: str
    means: list[float]
    intervals: list[float]
    episodes: int
    chance: float | None

    @property
    def steps(self) -> int:
        """The number of adaptation steps."""
        return len(self.means) - 1

    def text(self, step: int = -1) -> str:
        """The metric after a step, the last by default: "91.3 ± 0.6%" or "0.31 ± 0.02"."""
        return format_metric(self.metric, self.means[step], self.intervals[step])

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
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


def format_metric(metric: str, mean: float, interval: float | None = None) -> str:
    """An accuracy in per cent, or a loss with three digits, with its interval if there is one."""
    if metric == "accuracy":
        return f"{mean:.1%}" if interval is None else f"{100 * mean:.1f} ± {100 * interval:.1f}%"
    return f"{mean:.3g}" if interval is None else f"{mean:.3g} ± {interval:.2g}"


def evaluate(
    maml: MAML,
    episodes: Iterator[Episodes],
    count: int,
    steps: int,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Adapt to `count` episodes and measure on their query sets, without graphs.

    In evaluation mode (no dropout). Modes and PyTorch's random state are as before afterwards, so
    that evaluating changes no training run.

    Args:
        maml: what to evaluate; its parameters do not change.
        episodes: meta-batches of unseen tasks.
        count: how many episodes, from as many meta-batches as that takes.
        steps: inner steps.
        after_batch: called with the number of episodes done, after each meta-batch.
    """
    rows: list[Tensor] = []
    metric, chance, done = "loss", None, 0
    with _evaluating(maml):
        while done < count:
            batch = next(episodes, None)
            if batch is None:
                raise ValueError(f"the episodes to evaluate on ended after {done} of {count}.")
            outputs = maml.evaluate_each_step(batch, steps)
            values = [x.losses for x in outputs]
            accuracies = [x.accuracies for x in outputs if x.accuracies is not None]
            if accuracies:
                values = accuracies
                metric, chance = "accuracy", 1 / batch.query.targets[0].unique().numel()
            rows.append(torch.stack([x.detach().double().cpu() for x in values], dim=1))
            done = min(done + len(batch), count)
            after_batch(done)
    table = torch.cat(rows)[:count]  # [episodes, steps + 1]
    spread = table.std(0) if count > 1 else torch.full_like(table[0], math.nan)
    intervals = NORMAL_95 * spread / math.sqrt(count)
    return Evaluation(metric, table.mean(0).tolist(), intervals.tolist(), count, chance)


@contextmanager
def _evaluating(maml: MAML) -> Iterator[None]:
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
