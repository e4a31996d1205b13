"""`fastmaml.bench` with arguments that cannot be obeyed: each is named before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from bench_learner import episodes, learner, model

import fastmaml as fm
from fastmaml.gradients import FirstOrder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("unrolled",)}, "methods="),
        ({"methods": ()}, "methods="),
        ({"steps": (0,)}, "steps="),
        ({"tasks": ()}, "tasks="),
        ({"backends": ("fast",)}, "backends="),
        ({"executors": "eager"}, "executors="),
        ({"vs": "second"}, "vs="),
        ({"vs": "first-order", "methods": (FirstOrder(),)}, "none of them is exact"),
        ({"repeats": 0}, "repeats="),
        ({"seconds": 0}, "seconds="),
        ({"budget": 1.5}, "budget="),
        ({"budget": "much"}, "budget='much'"),
        ({"accuracy": 3}, "needs vs="),
        ({"accuracy": 3, "vs": "first-order"}, "needs test="),
    ],
)
def test_arguments_that_cannot_be_obeyed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fm.bench(learner(), episodes(), **options)


def test_wrong_kinds_are_named() -> None:
    with pytest.raises(ValueError, match="maml is a Sequential"):
        fm.bench(model(), episodes())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="episodes is a int"):
        fm.bench(learner(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gave a list first"):
        fm.bench(learner(), [[1]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="gave nothing first"):
        fm.bench(learner(), [])
    with pytest.raises(ValueError, match="gave a dict after the first meta-batch"):
        fm.bench(learner(), [episodes(2), {}], tasks=(3,))  # type: ignore[list-item]
