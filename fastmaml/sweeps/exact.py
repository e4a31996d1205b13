"""The exact meta-gradient that every configuration's is held against."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.sweeps.measure import check_room, gradient
from fastmaml.sweeps.reasons import reason_of
from fastmaml.sweeps.twins import in_configuration


class Distance(NamedTuple):
    """How far a meta-gradient g is from the exact one e: |g - e| / |e|, and the cosine."""

    error: float
    cosine: float


class Exact:
    """Exact meta-gradients in float64; where that is impossible, in the model's own precision.

    In plain PyTorch, eagerly, by whichever exact method the planner chooses.

    Args:
        twin: a copy of the user's, which is copied again in float64.
    """

    def __init__(self, twin: MAML) -> None:
        self._twin = twin
        self._double: MAML | None = None
        self._precise = True
        self.notes: list[str] = []

    @property
    def precision(self) -> str:
        """What it is computed in."""
        return "float64" if self._precise else "in the model's own precision"

    def gradient(self, episodes: Episodes, steps: int) -> Tensor | None:
        """As one float64 vector on the CPU; None where it cannot be had, which `notes` explain."""
        if self._precise:
            try:
                self._double = self._double or copy.deepcopy(self._twin).double()
                return self._of(self._double, episodes.to(torch.float64), steps)
            except Exception as error:
                why = reason_of(error)
            self._precise, self._double = False, None  # what failed once would again
            self.notes.append(
                f"the exact meta-gradient is computed in the model's own precision, as float64 was "
                f"impossible ({why})"
            )
        try:
            return self._of(self._twin, episodes, steps)
        except Exception as error:
            why = reason_of(error)
        self.notes.append(f"no exact meta-gradient for {steps} steps, {len(episodes)} tasks: {why}")
        return None

    @staticmethod
    def _of(twin: MAML, episodes: Episodes, steps: int) -> Tensor:
        maml = in_configuration(twin, None, steps)
        check_room(maml, episodes)
        return gradient(maml, episodes)


def distance(found: Tensor, exact: Tensor) -> Distance:
    """Of two vectors; nan where the exact one is zero."""
    size = float(exact.norm())
    error = float((found - exact).norm())
    both = size * float(found.norm())
    return Distance(
        error / size if size else math.nan, float(found @ exact) / both if both else math.nan
    )
