"""`MetaDatasetShots`: supports with another number of examples for each class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fastmaml.episodes.checks import check_positive


@final
@dataclass(frozen=True)
class MetaDatasetShots:
    """How many support and query examples classes have in Meta-Dataset (Triantafillou et al. 2020).

    With |c| the examples of a class (section 3.2 and appendix of the paper):

    - queries: min(`queries`, floor(|c| / 2) of the smallest class), for every class;
    - support, in all: min(`support`, sum over classes of ceil(β min(`per_class`, |c| - queries))),
      β uniform in (0, 1];
    - of it each class has floor(R (support - classes)) + 1, at most |c| - queries, where R is the
      share of exp(α) |c| among all, α uniform in [log 1/2, log 2).

    All tasks of a meta-batch have the same vector of shots, so that nothing is padded; which class
    has how many is drawn anew for each task. For it |c| is the least of the tasks' classes of that
    rank in size; in data whose classes are alike it is what the paper draws.

    Args:
        support: most support examples of a task.
        per_class: most support examples that count of a class.
        queries: most query examples of a class.

    Raises:
        ValueError: a number that is not positive.
    """

    support: int = 500
    per_class: int = 100
    queries: int = 10

    def __post_init__(self) -> None:
        check_positive(support=self.support, per_class=self.per_class, queries=self.queries)

    @property
    def least(self) -> int:
        """What the smallest class has to have: an example in each set."""
        return 2

    def numbers(
        self, sizes: list[int], queries: int | None, generator: torch.Generator
    ) -> tuple[list[int], int]:
        """The support examples of classes with these sizes, and the query examples of each.

        Args:
            sizes: of the classes, each at least 2.
            queries: None for as many as the paper has.
            generator: of the draws.
        """
        if queries is None:
            queries = min(self.queries, min(sizes) // 2)
        draws = torch.rand(1 + len(sizes), generator=generator, device=generator.device).tolist()
        beta = 1 - draws[0]  # in (0, 1]
        counted = (math.ceil(beta * min(self.per_class, size - queries)) for size in sizes)
        total = max(min(self.support, sum(counted)), len(sizes))
        weights = [
            math.exp(math.log(0.5) + x * math.log(4)) * size
            for x, size in zip(draws[1:], sizes, strict=True)
        ]
        shares = [weight / sum(weights) for weight in weights]
        shots = [
            min(math.floor(share * (total - len(sizes))) + 1, size - queries)
            for share, size in zip(shares, sizes, strict=True)
        ]
        return shots, queries


def different(counts: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """For each entry n of `counts`, numbers below n in random order, each once.

    Args:
        counts: int64 ``[...]``.
        k: how many, at most the largest count; where n is less than `k`, only the first n of them
            are meant.
        generator: on the device of `counts`.

    Returns:
        int64 ``[..., k]``.
    """
    most = int(counts.max())
    keys = torch.rand(*counts.shape, most, generator=generator, device=counts.device)
    there = torch.arange(most, device=counts.device) < counts.unsqueeze(-1)
    return keys.where(there, -1).topk(k, dim=-1).indices
