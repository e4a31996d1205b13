"""What a small meta-step did, operator by operator, and what of it a replay would do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch


class Place(NamedTuple):
    """A tensor as an argument: where in the memory of a storage its elements lie."""

    storage: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Event(NamedTuple):
    """An operator that made memory or wrote to it; storages are numbered as they are seen."""

    function: Any
    reads: list[int]
    makes: list[int]
    mutates: bool
    arguments: Any
    """With a `Place` for every tensor; None where it is not known what they are."""


def _written(events: Iterable[Event | None]) -> set[int]:
    """The storages that some operator writes to."""
    return {x for e in events if e and e.mutates and e.reads for x in (e.reads[0], *e.makes)}


def without_repeats(
    events: Sequence[Event], results: set[int]
) -> tuple[list[Event | None], dict[int, int]]:
    """The events without those that repeat another, and by what their storages are replaced.

    As in `flat.cleaned`: a result is shared where it is still there at the second call.
    """
    written, last = _written(events), dict[int, int]()
    for i, event in enumerate(events):
        last.update((x, i) for x in event.reads)
    last.update((x, len(events)) for x in results)
    seen: dict[Any, list[int]] = {}
    same: dict[int, int] = {}
    found: list[Event | None] = []
    for i, event in enumerate(events):
        event = _renamed(event, same) if same else event
        found.append(event)
        if event.mutates or event.arguments is None or written & {*event.reads, *event.makes}:
            continue
        first = seen.setdefault((event.function, event.arguments), event.makes)
        if first is event.makes:
            continue
        if all(last.get(x, -1) >= i for x in first):
            found[-1] = None
            for new, old in zip(event.makes, first, strict=True):
                same[new] = old
                last[old] = max(last[old], last.get(new, -1))
        else:
            seen[event.function, event.arguments] = event.makes
    return found, same


def _renamed(event: Event, same: dict[int, int]) -> Event:
    """With other storages read."""

    def renamed(tree: Any) -> Any:
        if isinstance(tree, Place):
            return tree._replace(storage=same.get(tree.storage, tree.storage))
        return tuple(map(renamed, tree)) if isinstance(tree, tuple) else tree

    reads = [same.get(x, x) for x in event.reads]
    return event._replace(reads=reads, arguments=renamed(event.arguments))


def to_compute(events: Sequence[Event | None], results: set[int]) -> list[Event | None]:
    """The events that a replay computes; None for those that it does not."""
    written = _written(events)
    constant: set[int] = set()
    for event in events:
        if event and not event.mutates and constant.issuperset(event.reads):
            constant.update(x for x in event.makes if x not in written)
    wanted, found = set(results), list[Event | None]()
    for event in reversed(events):
        if event is None:
            found.append(None)
            continue
        touched = (*event.makes, *(event.reads if event.mutates else ()))
        computed = any(x in wanted and x not in constant for x in touched)
        found.append(event if computed else None)
        if computed:
            wanted.update(event.reads)
    return found[::-1]
