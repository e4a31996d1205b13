"""Meta-batches of as many tasks as a sweep wants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmaml.episodes.batch import Episodes


def opened(episodes: Episodes | Iterable[Episodes]) -> tuple[Episodes, Iterator[Episodes]]:
    """The first meta-batch, and those to come.

    Raises:
        ValueError: it is neither an `Episodes` nor an iterable of them, or there are none.
    """
    if isinstance(episodes, Episodes):
        return episodes, iter(())
    if not isinstance(episodes, Iterable):
        raise ValueError(
            f"episodes is a {type(episodes).__name__}; give a fastmaml.Episodes, or an iterable of "
            "them."
        )
    more = iter(episodes)
    first = next(more, None)
    if not isinstance(first, Episodes):
        got = "nothing" if first is None else f"a {type(first).__name__}"
        raise ValueError(f"episodes gave {got} first; give an iterable of fastmaml.Episodes.")
    return first, more


def enough(first: Episodes, more: Iterator[Episodes], tasks: int) -> tuple[Episodes, str]:
    """A meta-batch of at least `tasks` tasks, and a line on how it came about; empty if simply.

    Further meta-batches are joined to the first while there are some and their shapes agree; then
    its tasks are repeated.

    Raises:
        ValueError: what comes after the first is no `Episodes`.
    """
    found, why = first, "no more were given"
    while found.tasks < tasks:
        after = next(more, None)
        if after is None:
            break
        if not isinstance(after, Episodes):
            raise ValueError(
                f"episodes gave a {type(after).__name__} after the first meta-batch; give an "
                "iterable of fastmaml.Episodes."
            )
        try:
            found = _joined(found, after)
        except (ValueError, RuntimeError):
            why = "meta-batches differ in shape and cannot be joined"
            break
    if found.tasks >= tasks:
        return found, ""
    index = torch.arange(tasks) % found.tasks
    # Labelled data may lie on a device, where an index of the CPU is accepted too.
    repeated = Episodes.map(found, lambda x: x[index])
    return repeated, f"beyond {found.tasks} tasks the same ones are repeated, as {why}"


def _joined(a: Episodes, b: Episodes) -> Episodes:
    pairs = zip(a.tree(), b.tree(), strict=True)
    return a.of_tree(tuple((_cat(x[0], y[0]), _cat(x[1], y[1])) for x, y in pairs))


def _cat(a: Any, b: Any) -> Any:
    """Trees joined along the tasks; what is no tensor is the first's."""
    return tree_map(lambda x, y: torch.cat([x, y]) if isinstance(x, Tensor) else x, a, b)
