"""Numbers of ways and shots: given, or drawn for each meta-batch, and whether the data has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.imbalance import MetaDatasetShots

Number = int | tuple[int, int]
"""One for all meta-batches, or the smallest and the largest that a meta-batch draws."""


def check_number(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a positive integer, or two in order."""
    if not isinstance(value, tuple | list):
        check_positive(**{name: value})
        return
    if len(value) != 2:
        raise ValueError(f"{name}={value!r}: give a number, or the smallest and the largest.")
    for one in value:
        if not isinstance(one, int) or isinstance(one, bool) or one < 1:
            raise ValueError(f"{name}={value!r}: give two positive integers.")
    if value[0] > value[1]:
        raise ValueError(f"{name}={value!r}: give the smallest first, ({value[1]}, {value[0]}).")


def drawn(number: Number, generator: torch.Generator) -> int:
    """The number, or one of its range, all equally likely."""
    if isinstance(number, int):
        return number
    low, high = number
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def largest(number: Number) -> int:
    """The most that a meta-batch can have."""
    return number if isinstance(number, int) else number[1]


def check_classes(
    counts: Mapping[Any, int],
    ways: Number,
    shots: Number | MetaDatasetShots,
    queries: int | None,
    of: str = "the data",
    turns: int = 1,
) -> None:
    """Raise a ValueError where there are too few classes, or one has too few examples.

    Args:
        counts: the examples of each class.
        ways: as of `EpisodeSampler`.
        shots: as of `EpisodeSampler`.
        queries: as of `EpisodeSampler`.
        of: what has these classes.
        turns: how many classes each of them makes.
    """
    most, classes = largest(ways), len(counts) * turns
    if most > classes:
        raise ValueError(
            f"ways={ways}, but {of} has {classes} classes. "
            f"Choose ways={classes} or fewer, or give data with more classes."
        )
    if isinstance(shots, MetaDatasetShots):
        need = shots.least if queries is None else queries + 1
        said = f"needs {need} of each class with these shots"
    else:
        support = largest(shots)
        query = support if queries is None else queries
        need = support + query
        said = f"takes shots={support} + queries={query} = {need} of a class"
    few = [(name, count) for name, count in counts.items() if count < need]
    if few:
        (name, count), others = few[0], len(few) - 1
        more = f" ({others} more classes are too small, too)" if others else ""
        raise ValueError(
            f"class {name} has {count} examples{more}, but an episode {said}. Choose smaller "
            "numbers, or leave out the small classes."
        )
