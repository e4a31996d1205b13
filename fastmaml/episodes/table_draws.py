"""Which rows of each task are drawn, for tasks of different sizes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

MOST_BUCKETS = 6
"""Of a size each is recorded by itself."""


@final
@dataclass(frozen=True)
class Draw:
    """Rows of every task in random order, the support set's first.

    Attributes:
        rows: int64 ``[tasks, rows]``, numbers of rows in the whole table.
        own: int64 ``[tasks, rows]``, labels 0, 1, ... of each task's own classes in random order;
            None without classes.
        first: int64 ``[tasks]``, how many of them are the support set.
    """

    rows: Tensor
    own: Tensor | None
    first: Tensor

    def side(self, side: int, sizes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The rows of support (0) or query sets (1), and which of them count.

        Where a set is smaller than `size`, its first row is there again, which is as finite as the
        others whatever a model does.

        Returns:
            int64 and bool, ``[tasks, size]``.
        """
        place, counts = self._place(side, sizes, size)
        return self.rows.gather(1, place), counts

    def labels(self, side: int, sizes: Tensor, size: int) -> Tensor:
        """The labels of the same rows, within each task."""
        assert self.own is not None
        return self.own.gather(1, self._place(side, sizes, size)[0])

    def _place(self, side: int, sizes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        number = torch.arange(size).expand(len(sizes), size)
        counts = number < sizes.unsqueeze(1)
        start = self.first.unsqueeze(1) if side else 0
        return torch.where(counts, number, 0) + start, counts


def drawn(
    starts: Tensor,
    counts: Tensor,
    supports: Tensor,
    queries: Tensor,
    strata: tuple[Tensor, Tensor] | None,
    generator: torch.Generator,
) -> Draw:
    """Rows of every task, all choices equally likely.

    With classes, the support set begins with a row of each class of the task (of as many as it has
    rows, drawn at random); its other rows are drawn from all that are left.

    Args:
        starts, counts: int64 ``[tasks]``, where each task's rows begin and how many they are.
        supports, queries: int64 ``[tasks]``, how many are wanted.
        strata: int64 ``[all rows]``, classes numbered within each task, and ``[tasks]``, how many
            there are; None without classes.
        generator: on the CPU.
    """
    tasks, most = len(counts), int(counts.max())
    number = torch.arange(most).expand(tasks, most)
    there = number < counts.unsqueeze(1)
    key = torch.rand(tasks, most, generator=generator, dtype=torch.float64)
    key = key.masked_fill(~there, torch.inf)
    rows = torch.where(there, number, 0) + starts.unsqueeze(1)
    own = None
    if strata is not None:
        own = strata[0][rows]
        least = torch.full((tasks, int(strata[1].max())), torch.inf, dtype=torch.float64)
        least = least.scatter_reduce(1, own, key, "amin")
        key = torch.where(there & (key == least.gather(1, own)), key - 1, key)
        own = _shuffled(strata[1], generator).gather(1, own)
    wanted = int((supports + queries).max())
    order = key.topk(wanted, largest=False).indices
    if own is not None:
        own = own.gather(1, order)
    return Draw(rows.gather(1, order), own, supports)


def _shuffled(classes: Tensor, generator: torch.Generator) -> Tensor:
    """For each task the labels of its classes 0, 1, ..., in random order; ``[tasks, classes]``."""
    most = int(classes.max())
    key = torch.rand(len(classes), most, generator=generator)
    # Numbers that are no classes of the task come last, so that the others' labels are the first.
    return (key + (torch.arange(most) >= classes.unsqueeze(1))).argsort(1).argsort(1)


def buckets(sizes: Tensor, tasks: int) -> list[Tensor]:
    """Tasks of like sizes: numbers of tasks, in groups of at least `tasks` and of few sizes.

    Args:
        sizes: int64 ``[all tasks]``, how many rows each has.
        tasks: how many a meta-batch has.
    """
    count = min(max(len(sizes) // tasks, 1), MOST_BUCKETS)
    order = sizes.argsort(stable=True)
    return [part for part in order.tensor_split(count) if len(part)]
