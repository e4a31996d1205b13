"""`Mixture`: episodes of several data sets of texts, each task being one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from fastmaml.episodes.batch import Batch
from fastmaml.episodes.checks import check_choice, check_positive
from fastmaml.episodes.named import NamedEpisodes
from fastmaml.episodes.pools import NOTHING, SAMPLING, Balance, Pool, Sampling, choose, pick
from fastmaml.episodes.source import EpisodeSource
from fastmaml.episodes.text_task import LabelledText, TextTask
from fastmaml.episodes.tokens import joined

BALANCE = ("both", "support", "none")


@final
class Mixture(EpisodeSource):
    """An infinite iterable of meta-batches whose tasks are whole data sets, of different kinds.

    Every task draws its data set, then `support` and `query` examples of it without replacement.
    Data sets may differ in their number of classes, and some may be regressions. Inputs are dicts
    as those of `fastmaml.episodes.text`. Targets are a dict, which `fastmaml.losses.classification`
    understands:

        ``labels``   int64 ``[tasks, examples]``, the class; 0 in a regression
        ``values``   float32 ``[tasks, examples]``, what a regression is to give; 0 elsewhere
        ``classes``  int64 ``[tasks, 1]``, how many classes the data set has; 1 for a regression

    The model needs as many outputs as the data set with most classes has, those of the test too.
    Each meta-batch is a `NamedEpisodes` with the names of its data sets. Everything is drawn on the
    CPU, so episodes are the same on every device. Cost: a few milliseconds for ten tasks.

    Args:
        data_sets: what tasks are made of.
        support: support examples a task. They are divided over the task's classes as evenly as
            possible (16 over 3 classes is 6, 5 and 5, the larger share going to a random class), so
            that tasks with different numbers of classes fit into one meta-batch.
        query: query examples a task, divided likewise.
        tasks: tasks a meta-batch.
        sampling: how often a data set is drawn: "uniform", "proportional" to its number of
            examples, to the square root of it ("sqrt"), or "equal": each meta-batch holds every
            data set equally often, random ones making up what is left.
        balance: which sets are divided evenly over the classes: "both", "support", or "none"; the
            other ones are drawn from all examples alike.
        fixed_query: whether a data set always has the same query examples, drawn once. It needs
            query examples that are apart from the support examples.
        seed: of the source's own generator.
        device: where the texts are held and episodes are handed out; None for the CPU.

    Raises:
        ValueError: a number that is not positive, no or two equal names of data sets, or a data set
            with too few examples.
    """

    def __init__(
        self,
        data_sets: Sequence[TextTask],
        *,
        support: int = 16,
        query: int = 16,
        tasks: int = 4,
        sampling: Sampling = "uniform",
        balance: Balance = "both",
        fixed_query: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        check_positive(support=support, query=query, tasks=tasks)
        check_choice("sampling", sampling, SAMPLING)
        check_choice("balance", balance, BALANCE)
        super().__init__(seed, "cpu")
        self.support, self.query, self.tasks = support, query, tasks
        self.sampling, self.balance = sampling, balance
        self.names = tuple(data.name for data in data_sets)
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"data_sets has the names {self.names}: give at least one, each once.")
        self._classes = torch.tensor([data.classes for data in data_sets])
        self._sizes = torch.tensor([len(data) for data in data_sets], dtype=torch.float64)
        self._pools: list[Pool] = []
        parts: list[LabelledText] = []
        for data in data_sets:
            first = sum(len(part.labels) for part in parts)
            self._pools.append(Pool.of(data, first, balance))
            self._pools[-1].check(data.name, support, query, fixed_query)
            parts += [data.support] if data.query is None else [data.support, data.query]
        self._tokens = joined([part.tokens for part in parts]).to(device)
        self._labels = _column(parts, torch.int64).to(device)
        self._values = _column(parts, torch.float32).to(device)
        self._fixed = [pool.fixed_query(query) for pool in self._pools if fixed_query]

    def sample(self) -> NamedEpisodes:
        """The next meta-batch, with the name of each task's data set."""
        chosen = choose(self._sizes, self.tasks, self.sampling, self.generator)
        drawn = [self._draw(i) for i in chosen.tolist()]
        support, query = (torch.stack(rows) for rows in zip(*drawn, strict=True))
        classes = self._classes[chosen].unsqueeze(-1).to(self._labels.device)
        names = tuple(self.names[i] for i in chosen.tolist())
        length = self._tokens.padded_length(support, query)
        one, other = (self._batch(rows, length, classes) for rows in (support, query))
        return NamedEpisodes(one, other, names)

    def _draw(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows of one task's support and query set."""
        pool = self._pools[number]
        support = pick(pool.support, self.support, NOTHING, self.generator)
        if self._fixed:
            return support, self._fixed[number]
        avoid = NOTHING if pool.apart else support
        return support, pick(pool.query, self.query, avoid, self.generator)

    def _batch(self, rows: Tensor, length: int, classes: Tensor) -> Batch:
        rows = rows.to(self._labels.device)
        targets = {"labels": self._labels[rows], "values": self._values[rows], "classes": classes}
        return Batch(self._tokens.batch(rows, length), targets)

    def __repr__(self) -> str:
        return (
            f"Mixture({', '.join(self.names)}, support={self.support}, query={self.query}, "
            f"tasks={self.tasks}, sampling='{self.sampling}', balance='{self.balance}')"
        )


def _column(parts: list[LabelledText], dtype: torch.dtype) -> Tensor:
    """The labels of the parts whose labels are of this type, and zeros for the others."""
    own = (
        part.labels if part.labels.dtype == dtype else torch.zeros_like(part.labels)
        for part in parts
    )
    return torch.cat([labels.to(dtype) for labels in own])
