"""fastmaml, as its users call it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import fastmaml as fm
from contestants import Built, Setup
from contestants.torch_problem import built, problem

SETTINGS: dict[str, dict[str, Any]] = {
    "fastmaml": {},
    "fastmaml captured, reference ops": {"executor": "captured", "backend": "reference"},
    "fastmaml eager, reference ops": {"executor": "eager", "backend": "reference"},
    "fastmaml compiled": {"executor": "compiled"},
    "fastmaml, first order": {"first_order": True},
}


def build(name: str, setup: Setup) -> Built:
    p = problem(setup)
    maml = fm.MAML(p.model, p.lr, steps=p.steps, loss=p.loss, **SETTINGS[name])
    parameters = dict(p.model.named_parameters())

    def run() -> dict[str, Tensor]:
        maml.zero_grad()
        maml(p.episodes).loss.backward()
        return {n: w.grad for n, w in parameters.items() if w.grad is not None}

    return built(run, setup, plain=False, fastmaml=fm.__version__)
