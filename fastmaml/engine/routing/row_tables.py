"""Adapted embeddings of which every task gets the few rows that it looks up.

A language model's table of 30,522 rows is half of its parameters, and an episode touches a few
hundred. Rows that no example looks up have no inner gradient, so the inner loop needs none of them:
each task adapts a table ``[rows, width]`` gathered from the shared one, and the indices are looked
up among the task's own sorted ones. The meta-gradient goes back through the gathering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class RowTable:
    """An embedding whose indices are an input.

    Attributes:
        name: of its weight.
        leaf: which leaf of a batch's inputs holds the indices.
    """

    name: str
    leaf: int

    def count(self, episodes: Any) -> int:
        """How many indices there are a task, whether or not they differ."""
        sets = (episodes.support.inputs, episodes.query.inputs)
        return sum(tree_leaves(x)[self.leaf][0].numel() for x in sets)

    def rows(self, episodes: Any) -> Tensor:
        """The indices that occur, ascending: ``[tasks, indices of support and query together]``.

        The last one is repeated to fill up, so that the shape does not depend on the numbers.
        """
        sets = (episodes.support.inputs, episodes.query.inputs)
        every = torch.cat([tree_leaves(x)[self.leaf].flatten(1) for x in sets], 1)
        ordered = every.long().sort(1).values
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        filled = ordered[:, -1:].expand_as(ordered).clone()
        return filled.scatter(1, new.cumsum(1) - 1, ordered)


_ABOUT_IT = {"dtype", "device", "is_cuda", "ndim", "requires_grad", "layout"}
"""What may be asked of a table: its rows have the same."""


def asks_about(func: Any) -> bool:
    """Whether a function that a mode sees reads such an attribute."""
    return getattr(getattr(func, "__self__", None), "__name__", "") in _ABOUT_IT


def gathered(table: Tensor, rows: Tensor) -> Tensor:
    """The rows ``[tasks, rows, width]`` of a shared table."""
    return F.embedding(rows, table)
