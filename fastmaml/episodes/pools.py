"""`Pool`: which rows of a data set a task of a `Mixture` may draw, and how."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from fastmaml.episodes.sampler import draw
from fastmaml.episodes.text_task import LabelledText, TextTask

Balance = Literal["both", "support", "none"]
"""Which sets are divided evenly over the classes."""

Sampling = Literal["uniform", "proportional", "sqrt", "equal"]
"""How often each data set is drawn: see `Mixture`."""

SAMPLING = ("uniform", "proportional", "sqrt", "equal")

FIXED_SEED = 0
"""Of the query rows that stay the same; whatever the mixture's seed, they are the same rows."""

NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Pool:
    """The rows of one data set, in groups of which equally many are drawn: its classes, or all.

    Attributes:
        support: the groups that support sets are drawn from, each int64 ``[rows]``.
        query: those of the query sets.
        apart: whether no row is in both.
    """

    support: list[Tensor]
    query: list[Tensor]
    apart: bool

    @staticmethod
    def of(data: TextTask, first: int, balance: Balance) -> Pool:
        """Rows are numbered from `first` on, the query examples after the support examples."""
        support = _groups(data, data.support, first, balance != "none")
        if data.query is None:
            query = _groups(data, data.support, first, balance == "both")
        else:
            query = _groups(data, data.query, first + len(data), balance == "both")
        return Pool(support, query, data.query is not None)

    def fixed_query(self, total: int) -> Tensor:
        """The same rows each time."""
        return pick(self.query, total, NOTHING, torch.Generator().manual_seed(FIXED_SEED))

    def check(self, name: str, support: int, query: int, fixed: bool) -> None:
        """Raise a ValueError unless there are rows enough for sets of these sizes."""
        if fixed and not self.apart:
            raise ValueError(
                f"fixed_query=True, but {name!r} has no query examples apart from the support "
                "examples: give text_task(query_data=...)."
            )
        _check_size(f"support={support}", name, self.support, support, 0)
        taken = support if len(self.query) == 1 else ceil(support / len(self.support))
        _check_size(f"query={query}", name, self.query, query, 0 if self.apart else taken)


def choose(sizes: Tensor, tasks: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The data set of every task, ``[tasks]``; `sizes` is float64 ``[data sets]``."""
    count = len(sizes)
    if sampling == "equal":
        rest = torch.randperm(count, generator=generator)[: tasks % count]
        return torch.cat([torch.arange(count).repeat(tasks // count), rest])
    power = {"uniform": 0.0, "proportional": 1.0, "sqrt": 0.5}[sampling]
    return torch.multinomial(sizes**power, tasks, replacement=True, generator=generator)


def pick(groups: list[Tensor], total: int, avoid: Tensor, generator: torch.Generator) -> Tensor:
    """`total` different rows, as evenly from the groups as possible, none of them in `avoid`."""
    each, more = divmod(total, len(groups))
    larger = torch.randperm(len(groups), generator=generator)[:more].tolist()
    found = []
    for i, group in enumerate(groups):
        size = each + (i in larger)
        # Enough of them that `size` are left; any first ones of what is left are equally likely.
        count = min(size + len(avoid), len(group))
        rows = group[draw(torch.tensor(len(group)), count, generator)]
        found.append(rows[~torch.isin(rows, avoid)][:size])
    return torch.cat(found)


def _groups(data: TextTask, part: LabelledText, first: int, balanced: bool) -> list[Tensor]:
    if not balanced or data.classes == 1:
        return [torch.arange(len(part.labels)) + first]
    return [(part.labels == c).nonzero().flatten() + first for c in range(data.classes)]


def _check_size(what: str, name: str, groups: list[Tensor], total: int, taken: int) -> None:
    smallest, need = min(map(len, groups)), ceil(total / len(groups)) + taken
    if total < len(groups):
        raise ValueError(f"{what}: {name!r} has {len(groups)} classes; give at least one of each.")
    if smallest < need:
        kind = "smallest class" if len(groups) > 1 else "data set"
        raise ValueError(
            f"{what}: the {kind} of {name!r} has {smallest} examples, and a task may need {need} "
            "of it. Choose smaller sets, or another balance=."
        )
