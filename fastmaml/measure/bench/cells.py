"""`Cell`: one configuration of a sweep, and what was measured of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from fastmaml.gradients import GradientMethod

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Configuration:
    """What is varied.

    Attributes:
        gradient: how the inner loop is differentiated.
        steps: inner steps.
        tasks: of the meta-batch.
        backend: what runs the model's layers; None for `MAML` to choose.
        executor: how the meta-step runs; None for `MAML` to choose.
    """

    gradient: GradientMethod
    steps: int
    tasks: int
    backend: str | None = None
    executor: str | None = None

    @property
    def method(self) -> str:
        """Such as "Unrolled" or "MixedMode(segments=3)"."""
        own = [
            f"{f.name}={getattr(self.gradient, f.name)!r}"
            for f in fields(self.gradient)
            if getattr(self.gradient, f.name) != f.default
        ]
        return type(self.gradient).__name__ + (f"({', '.join(own)})" if own else "")

    @property
    def series(self) -> Series:
        """What it has in common with those that differ in steps and tasks alone."""
        return Series(self.method, self.backend or "auto", self.executor or "auto")


class Series(NamedTuple):
    """The configurations that one growth law is fitted to."""

    method: str
    backend: str
    executor: str


class Quartiles(NamedTuple):
    """The middle of some measurements, between what the middle half of them lies, and all."""

    low: float
    median: float
    high: float
    least: float
    most: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Of at least one value; within what was measured."""
    least, most = min(values), max(values)
    if len(values) == 1:
        return Quartiles(least, least, least, least, least)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(low, median, high, least, most)


@dataclass(frozen=True)
class Cell:
    """What was measured of a configuration; what could not be is None, and says why.

    Attributes:
        configuration: what was measured.
        refusal: why it could not run: "out of memory", "refused: ..." or "failed: ..." with the
            cause, or "left out: ..." where it was not tried; empty where it ran.
        first_call: seconds of the first meta-step, with all that is planned, recorded or compiled.
        turns: seconds of a meta-step, the median of each turn.
        in_rounds: whether the turns are those of rounds, in which all other configurations took
            one too, from the first round on; else they were taken in a row.
        peak_bytes: what a meta-step needs at its peak besides the model and the data; the
            ``.grad`` that it makes is part of it.
        first_peak_bytes: the same of the first call, which plans and records.
        memory: how the two were measured, or why they were not.
        tasks_at_once: how many tasks run at the same time.
        error: |g - e| / |e| of its meta-gradient g and the exact one e.
        cosine: of the angle between the two.
        exact_in: the precision that the exact one was computed in: "float64", or "own precision".
        explanation: the lines of `MAML.explain`: how it ran, and why.
    """

    configuration: Configuration
    refusal: str = ""
    first_call: float | None = None
    turns: tuple[float, ...] = ()
    in_rounds: bool = False
    peak_bytes: int | None = None
    first_peak_bytes: int | None = None
    memory: str = ""
    tasks_at_once: int | None = None
    error: float | None = None
    cosine: float | None = None
    exact_in: str = ""
    explanation: tuple[str, ...] = field(default=(), repr=False)

    @property
    def seconds(self) -> Quartiles | None:
        """Of a meta-step's forward and backward, over the turns."""
        return quartiles(self.turns) if self.turns else None

    @property
    def needed_bytes(self) -> int | None:
        """The most of any call: the first one's, or the later ones'."""
        sizes = [size for size in (self.peak_bytes, self.first_peak_bytes) if size]
        return max(sizes, default=None)

    @property
    def tasks_per_second(self) -> float | None:
        """Tasks per second, at the median time; None where it was not measured."""
        found = self.seconds
        return None if found is None else self.configuration.tasks / found.median

    def as_dict(self) -> dict[str, Any]:
        """The configuration and its numbers as plain dicts and lists, for JSON."""
        c, seconds = self.configuration, self.seconds
        row: dict[str, Any] = {"method": c.method, "exact": c.gradient.exact, **asdict(c)}
        row["gradient"] = repr(c.gradient)
        if self.refusal:
            row["refusal"] = self.refusal
        return row | {
            "first_call_s": self.first_call,
            "turns_s": list(self.turns),
            "in_rounds": self.in_rounds,
            "median_s": seconds and seconds.median,
            "quartiles_s": seconds and [seconds.low, seconds.high],
            "tasks_per_second": self.tasks_per_second,
            "peak_bytes": self.peak_bytes,
            "first_peak_bytes": self.first_peak_bytes,
            "memory": self.memory,
            "tasks_at_once": self.tasks_at_once,
            "gradient_error": finite(self.error),
            "gradient_cosine": finite(self.cosine),
            "exact_gradient_in": self.exact_in,
            "explanation": list(self.explanation),
        }


def finite(tree: Any) -> Any:
    """A tree of dicts and lists with None for the numbers that JSON has no text for."""
    if isinstance(tree, dict):
        return {name: finite(x) for name, x in tree.items()}
    if isinstance(tree, list):
        return [finite(x) for x in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
