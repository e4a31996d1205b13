"""How well adaptation works on episodes that were not trained on, with its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fastmaml.episodes.batch import Episodes
from fastmaml.training.measured import Measured, measure, summarised
from fastmaml.training.metrics import Choice, Metrics, chosen, of_next_tokens
from fastmaml.training.ranks import Ranks
from fastmaml.training.summary import Evaluation, OverNames

if TYPE_CHECKING:
    from fastmaml.maml import MAML

__all__ = ["Evaluation", "OverNames", "evaluate", "extent"]


def evaluate(
    maml: MAML,
    episodes: Iterable[Episodes],
    count: int | None,
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
        episodes: meta-batches of unseen tasks: an iterable or an iterator.
        count: how many episodes, from as many meta-batches as that takes. Of a finite set, such as
            `fastmaml.episodes.Table.all` gives, no more than all are; None for all of it.
        steps: inner steps.
        after_batch: called with the number of episodes done, after each meta-batch.
        metrics: what else to measure, as `Evaluation.scores` has it: names such as "f1,accuracy",
            or objects; see `fastmaml.training.metrics`. Each is averaged over the tasks that it is
            of. Or a dict of these by the name of a data set, for `NamedEpisodes`.
        ranks: processes with the same episodes, which divide the tasks of every meta-batch where
            that goes evenly; None for this one alone.

    Raises:
        ValueError: the episodes end too soon, or never with ``count=None``; or a metric is unknown,
            or of none of the tasks.
        ImportError: what computes a metric is missing.
    """
    choice = chosen(metrics, of_next_tokens(maml))
    ranks = Ranks() if ranks is None else ranks
    parts: list[Measured] = []
    done, count, stream = 0, extent(episodes, count), iter(episodes)
    shared = shares_draws(episodes)
    with evaluating(maml):
        while done < count:
            batch = next(stream, None)
            if batch is None:
                raise ValueError(f"the episodes to evaluate on ended after {done} of {count}.")
            found = ranks.divided(batch, lambda own: measure(maml, own, steps, choice))
            parts += [replace(one, draw=done) for one in found] if shared else found
            done = min(done + len(batch), count)
            after_batch(done)
    return summarised(parts[:count], choice)


def extent(episodes: Any, count: int | None) -> int:
    """How many episodes are evaluated on: `count`, or all of a finite set that has fewer.

    Args:
        episodes: a finite set says how many it has as ``total``.
        count: None for all of it.

    Raises:
        ValueError: all are asked for, and how many that is nobody says.
    """
    total: int | None = getattr(episodes, "total", None)
    if count is None and total is None:
        raise ValueError(
            f"count=None, but a {type(episodes).__name__} may have no end: give a number, or a "
            "finite set that has its number of episodes as `total`, such as table(...).all()."
        )
    return min(x for x in (count, total) if x is not None)


def shares_draws(episodes: Any) -> bool:
    """Whether the tasks of a meta-batch are no independent draws, as those of a range of ways.

    Args:
        episodes: an `EpisodeSource`, its iterator, or what has one as ``source``, says so.
    """
    while not hasattr(episodes, "shares_draws"):
        if (episodes := getattr(episodes, "source", None)) is None:
            return False
    return bool(episodes.shares_draws)


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
