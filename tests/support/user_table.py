"""A table of users with rows of their own, for tests of `episodes.table`."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

import fastmaml as fm

COLUMNS = ("user", "hour", "price", "day", "score")


def users(count: int = 40, low: int = 4, high: int = 20) -> dict[str, list[Any]]:
    """Rows of users of different sizes, in mixed order; ``price`` names each row of a user."""
    draw = random.Random(0)
    rows = [
        (f"u{u}", draw.randrange(24), 1000 * u + i, draw.choice(("mon", "tue")), draw.random() + u)
        for u in range(count)
        for i in range(draw.randint(low, high))
    ]
    draw.shuffle(rows)
    return {
        name: list(values) for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True)
    }


def source(data: Any = None, **options: Any) -> fm.episodes.Table:
    given = {"task": "user", "target": "score", "tasks": 8} | options
    return fm.episodes.table(users() if data is None else data, **given)


def counts(batch: fm.Batch) -> Tensor:
    return batch.targets["counts"]
