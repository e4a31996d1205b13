"""The configurations of a sweep, in the order in which they are measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from fastmaml import ops
from fastmaml.engine.recording.executors import EXECUTORS
from fastmaml.gradients import (
    Checkpointed,
    FirstOrder,
    GradientMethod,
    MixedMode,
    Unrolled,
)
from fastmaml.maml import MAML
from fastmaml.measure.bench.cells import Configuration

METHODS = (Unrolled(), Checkpointed(), MixedMode(), FirstOrder())
"""What a sweep compares by default: the exact methods, and the usual approximation."""

FIRST_ORDER = "first-order"


def configurations(
    maml: MAML,
    given_tasks: int,
    methods: Sequence[GradientMethod],
    steps: Sequence[int],
    tasks: Sequence[int] | None,
    backends: Sequence[str | None] | None,
    executors: Sequence[str | None] | None,
    vs: str | None,
) -> list[Configuration]:
    """Every combination, the small ones first, so that an interrupted sweep has them.

    Raises:
        ValueError: an argument that names nothing to measure, or what does not exist.
    """
    wrong = [m for m in methods if not isinstance(m, GradientMethod)]
    if wrong or not methods:
        raise ValueError(
            f"methods={methods!r}: give gradient methods such as fastmaml.gradients.Unrolled()."
        )
    if vs is not None:
        methods = _compared(methods, vs)
    at = sorted(_counts("steps", steps))
    sizes = sorted(_counts("tasks", (given_tasks,) if tasks is None else tasks))
    kinds = _names("backends", backends, maml.backend, (None, *ops.BACKENDS))
    ways = _names("executors", executors, maml.executor, (None, *EXECUTORS))
    return [
        Configuration(method, step, size, kind, way)
        for size, step, kind, way, method in itertools.product(
            sizes, at, kinds, ways, dict.fromkeys(methods)
        )
    ]


def _compared(methods: Sequence[GradientMethod], vs: str) -> Sequence[GradientMethod]:
    """The methods with first order among them."""
    if vs != FIRST_ORDER:
        raise ValueError(f"vs={vs!r}: choose {FIRST_ORDER!r}, or None.")
    if not any(m.exact for m in methods):
        raise ValueError(
            f"vs={vs!r} with methods={methods!r}: none of them is exact; add one such as "
            "fastmaml.gradients.Unrolled()."
        )
    return (*methods, FirstOrder())


def _counts(name: str, values: Iterable[int]) -> set[int]:
    values = list(values)
    if not values or any(type(v) is not int or v < 1 for v in values):
        raise ValueError(f"{name}={values!r}: give whole numbers of at least 1.")
    return set(values)


def _names(name: str, given: Sequence[Any] | None, own: Any, known: tuple[Any, ...]) -> list[Any]:
    values = [own] if given is None else list(dict.fromkeys(given))
    if isinstance(given, str) or not values or any(v not in known for v in values):
        raise ValueError(f"{name}={given!r}: give some of {', '.join(map(repr, known))}.")
    return values
