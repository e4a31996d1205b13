"""How well adaptation works on episodes that were not trained on, with its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fastmaml.episodes.batch import Episodes
from fastmaml.training.measured import Measured, measure, summarised
from fastmaml.training.metrics import Choice, Metrics, chosen, of_next_tokens
from fastmaml.training.ranks import Ranks
from fastmaml.training.summary import Evaluation, OverNames

if TYPE_CHECKING:
    from fastmaml.maml import MAML

__all__ = ["Evaluation", "OverNames", "evaluate"]


def evaluate(
    maml: MAML,
    episodes: Iterator[Episodes],
    count: int,
    steps: int,
    after_batch: Callable[[int], None] = lambda done: None,
    *,
    metrics: Metrics | Choice | None = None,
    ranks: Ranks | None = None,
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
        metrics: what else to measure, as `Evaluation.scores` has it: names such as "f1,accuracy",
            or objects; see `fastmaml.training.metrics`. Each is averaged over the tasks that it is
            of. Or a dict of these by the name of a data set, for `NamedEpisodes`.
        ranks: processes with the same episodes, which divide the tasks of every meta-batch where
            that goes evenly; None for this one alone.

    Raises:
        ValueError: the episodes end too soon; or a metric is unknown, or of none of the tasks.
        ImportError: what computes a metric is missing.
    """
    choice = chosen(metrics, of_next_tokens(maml))
    ranks = Ranks() if ranks is None else ranks
    parts: list[Measured] = []
    done = 0
    with evaluating(maml):
        while done < count:
            batch = next(episodes, None)
            if batch is None:
                raise ValueError(f"the episodes to evaluate on ended after {done} of {count}.")
            parts += ranks.divided(batch, lambda own: measure(maml, own, steps, choice))
            done = min(done + len(batch), count)
            after_batch(done)
    return summarised(parts[:count], choice)


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
