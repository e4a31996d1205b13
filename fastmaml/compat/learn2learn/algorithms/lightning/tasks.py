"""What one task of a batch is to the Lightning modules: tensors to record, a support, a query."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Tree = TypeVar("Tree")


@contextmanager
def can_record() -> Iterator[None]:
    """Leaves inference mode, in which trainers validate and test and nothing can be adapted.

    Whether gradients are enabled stays as it is.
    """
    enabled = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


def recordable(batch: Tree) -> Tree:
    """The batch, with copies of the tensors that were made in inference mode."""
    kept: Tree = tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, batch)
    return kept


def split(
    data: Tensor, labels: Any, ways: int, shots: int, queries: int
) -> tuple[Tensor, Any, Tensor, Any]:
    """Support and its labels, query and its labels, of a task that lies class by class.

    Args:
        data: ``[ways * (shots + queries), ...]``.
        labels: theirs.
        ways: classes.
        shots: support examples a class, its first ones.
        queries: query examples a class.

    Raises:
        ValueError: there are too few examples.

    Warns:
        UserWarning: there are more, so that the support is not `shots` of each class.
    """
    examples, expected = len(data), ways * (shots + queries)
    starts = (shots + queries) * torch.arange(ways)
    rows = (starts.unsqueeze(1) + torch.arange(shots)).flatten()
    if examples <= len(rows) or int(rows[-1]) >= examples:
        raise ValueError(
            f"a task of {examples} examples cannot have ways={ways} classes of shots={shots} and "
            f"queries={queries} examples: that makes {expected}. Give the module train_ways=, "
            "train_shots=, train_queries= and test_... as the task sets are."
        )
    if examples != expected:
        warnings.warn(
            f"a task has {examples} examples, but ways={ways}, shots={shots} and "
            f"queries={queries} make {expected}. As in learn2learn, the examples "
            f"{rows.tolist()} are the support and all others the query, of whatever classes they "
            "are. Give the module train_shots=, train_queries=, test_... as the task sets are.",
            stacklevel=2,
        )
    support = torch.zeros(examples, dtype=torch.bool)
    support[rows] = True
    return data[support], labels[support], data[~support], labels[~support]
