"""The exact meta-gradient that every configuration's is held against."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from fastmaml.engine.derivatives.copying import deep_copy
from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.measure.bench.configured import in_configuration
from fastmaml.measure.bench.failure_text import reason_of
from fastmaml.measure.bench.measure import check_room, gradient

FLOAT64, OWN = "float64", "own precision"


class Distance(NamedTuple):
    """How far a meta-gradient g is from the exact one e: |g - e| / |e|, and the cosine."""

    error: float
    cosine: float


class Reference(NamedTuple):
    """An exact meta-gradient, as one float64 vector on the CPU, and what it was computed in."""

    gradient: Tensor
    precision: str


class Exact:
    """Exact meta-gradients in float64; where that is impossible, in the model's own precision.

    In plain PyTorch, eagerly, by whichever exact method the planner chooses.

    Args:
        twin: a copy of the user's, which is copied again in float64.
    """

    def __init__(self, twin: MAML) -> None:
        self._twin = twin
        self._double: MAML | None = None
        self._refused = False
        self.notes: list[str] = []

    def gradient(self, episodes: Episodes, steps: int) -> Reference | None:
        """Of such meta-steps; None where it cannot be had, which `notes` explain."""
        at = f"for {steps} steps, {len(episodes)} tasks"
        if not self._refused:
            try:
                self._double = self._double or deep_copy(self._twin).double()
                found = self._of(self._double, episodes.to(torch.float64), steps)
                return Reference(found, FLOAT64)
            except Exception as error:
                why = reason_of(error)
                # A model or loss that takes no float64 never will; one without memory for it may.
                self._refused = _is_about_dtypes(why)
            self.notes.append(
                f"the exact meta-gradient {f'{at} ' * (not self._refused)}is computed in the "
                f"model's own precision, as float64 was impossible ({why})"
            )
            if self._refused:
                self._double = None
        try:
            return Reference(self._of(self._twin, episodes, steps), OWN)
        except Exception as error:
            why = reason_of(error)
        self.notes.append(f"no exact meta-gradient {at}: {why}")
        return None

    @staticmethod
    def _of(twin: MAML, episodes: Episodes, steps: int) -> Tensor:
        maml = in_configuration(twin, None, steps)
        check_room(maml, episodes)
        return gradient(maml, episodes)


def _is_about_dtypes(why: str) -> bool:
    """Whether a failure names the type of numbers, in one of the many ways that there are."""
    return re.search(r"dtype|scalar type|float|double|half", why, re.IGNORECASE) is not None


def distance(found: Tensor, exact: Tensor) -> Distance:
    """Of two vectors; nan where the exact one is zero."""
    size = float(exact.norm())
    error = float((found - exact).norm())
    both = size * float(found.norm())
    return Distance(
        error / size if size else math.nan, float(found @ exact) / both if both else math.nan
    )
