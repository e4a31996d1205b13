"""`fastmaml.bench` with `accuracy=`: what is learned, and what goes wrong when all else is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_learner import QUICK, episodes, learner
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Unrolled


@pytest.mark.slow
def test_accuracy_after_meta_training() -> None:
    train, test = (fm.episodes.digits(x, ways=5, shots=1, tasks=2) for x in ("train", "test"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    maml = fm.MAML(net, lr=0.1, loss=F.cross_entropy, executor="eager")
    found = fm.bench(
        maml, train, methods=(Unrolled(),), steps=(1,), vs="first-order", accuracy=3,
        test=test, test_episodes=5, optimizer=torch.optim.AdamW(maml.parameters(), 1e-2),
        **QUICK,
    )  # fmt: skip
    assert [(x.exact, x.iterations) for x in found.learned] == [(True, 3), (False, 3)]
    assert all(x.evaluation is not None and x.evaluation.episodes == 5 for x in found.learned)
    assert found.second_order[0].accuracy is found.learned[0].evaluation
    assert "accuracy, exact" in str(found)
    short = fm.bench(
        maml, iter([train.sample()] * 2), methods=(Unrolled(),), steps=(1,),
        vs="first-order", accuracy=3, test=test, test_episodes=5, **QUICK,
    )  # fmt: skip
    assert all(x.evaluation is None for x in short.learned)
    assert "ended after 1 of 3" in str(short)


def late(what: str) -> tuple[fm.MAML, dict[str, Any]]:
    """A learner and what is to be learned from, something of which fails after the sweep."""
    maml = learner()
    test: Any = [episodes(seed=3)]
    train: Any = iter([episodes()] * 3)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(maml.parameters(), 0.1)
    if what == "test":
        test = [fm.Episodes(episodes().support, episodes().query.map(lambda x: x[..., :1]))]
    elif what == "step":

        class Stuck(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                raise ZeroDivisionError("my optimizer")

        optimizer = Stuck(maml.parameters(), 0.1)
    elif what == "beginning":

        class Strange(torch.optim.SGD):
            def __init__(self, params: Any, lr: float, name: str | None = None) -> None:
                if name is None:
                    raise TypeError("my optimizer needs a name")
                super().__init__(params, lr)

        optimizer = Strange(maml.parameters(), 0.1, "mine")
    elif what == "drawing":

        def drawn() -> Any:
            yield episodes()
            yield episodes()
            raise OSError("my disk is gone")

        train = drawn()
    return maml, {"episodes": train, "test": test, "optimizer": optimizer}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("test", "its test: refused:"),
        ("step", "iteration 1: failed: my optimizer"),
        ("beginning", "its beginning: failed: my optimizer needs a name"),
        ("drawing", "drawing meta-batch 2: failed: my disk is gone"),
    ],
)
def test_what_fails_late_is_a_cell(what: str, message: str) -> None:
    maml, options = late(what)
    found = fm.bench(
        maml, methods=(Unrolled(),), steps=(1,), vs="first-order", accuracy=2, test_episodes=3,
        **options, **QUICK,
    )  # fmt: skip
    assert all(c.turns and not c.refusal for c in found.cells)
    assert [message in x.failure for x in found.learned] == [True, True]
    assert message in str(found)


@pytest.mark.slow
def test_an_interval_of_one_episode_is_written(tmp_path: Path) -> None:
    """It has no spread, which JSON has no number for."""
    maml, options = late("nothing")
    found = fm.bench(
        maml, methods=(Unrolled(),), steps=(1,), vs="first-order", accuracy=1, test_episodes=1,
        **options, **QUICK,
    )  # fmt: skip
    saved = json.loads(found.save_numbers(tmp_path).read_text())
    assert saved["learned"][0]["evaluation"]["interval_95"] is None


def test_an_optimizer_that_needs_a_closure_is_refused_before() -> None:
    maml = learner()
    optimizer = torch.optim.LBFGS(maml.parameters())
    with pytest.raises(ValueError, match=r"optimizer is a LBFGS.*closure"):
        fm.bench(
            maml, episodes(), vs="first-order", accuracy=1, test=episodes(), optimizer=optimizer
        )
