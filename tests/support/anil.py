"""A model with a body and a head, its learners, and what counts their passes or does without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from outcomes import PATHS, outcome
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import fastmaml as fm
from fastmaml.gradients.base import GradientMethod

STEPS = 4
ALL_PATHS = {"eager-reference": {"executor": "eager", "backend": "reference"}, **PATHS}


class Body(nn.Module):
    """Two layers with something in between, and a head."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6)
        self.between = between
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(self.between(self.first(x)))))


def vectors(tasks: int = 3) -> fm.Episodes:
    """A classification of vectors."""
    return fm.Episodes(*(
        fm.Batch(tensor(tasks, n, 5, seed=n), (tensor(tasks, n, seed=n + 1) * 9).long() % 3)
        for n in (6, 7)
    ))  # fmt: skip


def learner(model: nn.Module, gradient: GradientMethod, **options: Any) -> fm.MAML:
    given = {"lr": 0.5, "steps": STEPS, "scope": "head", "loss": F.cross_entropy, **options}
    return fm.MAML(model.double(), gradient=gradient, **given)


class Count(TorchFunctionMode):
    """Counts the calls of a function, from below: those that are really made."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.calls = function, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls += func is self.function
        return func(*args, **(kwargs or {}))


def same_as_whole_passes(
    monkeypatch: pytest.MonkeyPatch,
    model: nn.Module,
    gradient: GradientMethod,
    episodes: fm.Episodes,
    **options: Any,
) -> None:
    """Sharing changes nothing but the order of sums."""
    shared = outcome(learner(copy.deepcopy(model), gradient, **options), episodes)
    with monkeypatch.context() as patch:
        patch.setattr(GradientMethod, "steps_once", False)
        plain = {"executor": "eager", "backend": "reference"}
        whole = outcome(learner(model, gradient, **{**options, **plain}), episodes)
    shared.check_close(whole, 1e-12)
