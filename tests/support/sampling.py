"""Which rows of a table of tests stand for all: the same in every process, and at every run.

    @pytest.mark.sampled               # every pair of values of two parameters is seen
    @pytest.mark.sampled(together=1)   # every value
    @pytest.mark.sampled(at_most=3)    # of these at most three rows, far apart in the table

``columns=`` makes the values of a row from its parameters, where these are not what counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest

Values = Sequence[Hashable]

GOLDEN = (5**0.5 - 1) / 2
"""The fractional parts of its multiples lie evenly, however many there are."""


def covering(rows: Sequence[Values], together: int = 2, at_most: int | None = None) -> list[int]:
    """The numbers of rows in which all values that stand together in any row do so.

    Greedy: each choice is a row with most that was not seen before; of several the one whose
    values were chosen least often, so that no value is left to one row where others have many;
    and of these, the next in an order in which neighbours are far apart.

    Args:
        rows: their values, one a column.
        together: how many columns at a time; where there are fewer, all of them.
        at_most: stop after so many rows, though others would show more.
    """
    order = sorted(range(len(rows)), key=lambda i: (i + 1) * GOLDEN % 1)
    unseen = [set(_groups(row, together)) for row in rows]
    often: Counter[Hashable] = Counter()
    chosen: list[int] = []
    while any(unseen) and len(chosen) != at_most:
        most = max(map(len, unseen))
        best = min(
            (i for i in order if len(unseen[i]) == most),
            key=lambda i: sum(often[value] for value in enumerate(rows[i])),
        )
        chosen.append(best)
        often.update(enumerate(rows[best]))
        fresh = unseen[best].copy()
        for groups in unseen:
            groups -= fresh
    return sorted(chosen)


def _groups(row: Values, together: int) -> Iterable[Hashable]:
    return combinations(enumerate(row), min(together, len(row)))


def left_out(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """What is slow, and the rows that others stand for; nothing that needs a GPU.

    `benchmarks/gpu.py` runs as much of that as it has time for.
    """
    tables: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    found: set[pytest.Item] = set()
    for item in items:
        if item.get_closest_marker("gpu"):
            continue
        if item.get_closest_marker("slow"):
            found.add(item)
        elif item.get_closest_marker("sampled") and hasattr(item, "callspec"):
            tables[str(item.path), item.originalname].append(item)
    for table in tables.values():
        found |= {*table} - {*sample(table)}
    return found


def sample(table: Sequence[Any]) -> list[Any]:
    """Those of one test's rows that its marker chooses."""
    marker = table[0].get_closest_marker("sampled")
    assert marker is not None
    return _chosen(table, **marker.kwargs)


def _chosen(
    table: Sequence[Any],
    together: int = 2,
    at_most: int | None = None,
    columns: Any = None,
) -> list[Any]:
    values = columns or (lambda **given: given.values())
    rows = [[_comparable(x) for x in values(**item.callspec.params)] for item in table]
    return [table[i] for i in covering(rows, together, at_most)]


def _comparable(value: Any) -> Hashable:
    """What tells a parameter from others: its value, or which object it is."""
    if isinstance(value, tuple):
        return tuple(map(_comparable, value))
    return value if isinstance(value, str | int | float | bool | None) else id(value)
