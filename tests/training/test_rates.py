"""The outer learning rate: schedules, warm-up and torch's schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sinusoid_runs import lines, trainer
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from fastmaml.training.config import LoopConfig
from fastmaml.training.schedules import cosine, factor


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "step", "step_every": 2, "step_factor": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"warmup": 2, "schedule": "linear"}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ({"warmup": 1, "schedule": "cosine"}, [1, *(cosine(i, 5) for i in range(5))]),
        ({"schedule": "cosine"}, [cosine(i, 6) for i in range(6)]),
    ],
)
def test_factors(settings: dict[str, Any], expected: list[float]) -> None:
    config = LoopConfig(iterations=6, **settings)
    assert [factor(config, i) for i in range(6)] == pytest.approx(expected)


def rates(folder: Path) -> list[float]:
    return [x["lr"] for x in lines(folder) if "lr" in x]


def test_a_scheduler_goes_on_with_every_iteration(tmp_path: Path) -> None:
    plain = {"schedule": "constant", "evaluate_every": 0, "executor": "eager"}
    made = {"scheduler": lambda optimizer: StepLR(optimizer, 2, 0.1)}
    run = trainer(tmp_path, iterations=5, **made, **plain)
    run.fit()
    used = [0.01, 0.01, 0.001, 0.001, 0.0001]
    own = trainer(tmp_path / "own", iterations=5, schedule="step", step_every=2, evaluate_every=0)
    own.fit()
    assert rates(tmp_path / "own") == pytest.approx(used)
    assert rates(tmp_path) == pytest.approx(used), "the rate that the iteration was run with"
    for a, b in zip(run.maml.parameters(), own.maml.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_reduce_on_plateau_goes_by_validations(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"schedule": "constant", "meta_lr": 1.0, "evaluate_every": 1}

    def plateau(mode: str) -> Any:
        return lambda optimizer: ReduceLROnPlateau(optimizer, mode, 0.5, patience=0)

    trainer(tmp_path / "a", **settings, scheduler=plateau("min")).fit()
    best, rate, expected = float("inf"), 1.0, []
    for line in lines(tmp_path / "a"):
        if not line["iteration"]:
            continue
        expected.append(rate)
        value = line["validation"]["loss"]
        rate = rate if value < best * (1 - 1e-4) else rate * 0.5
        best = min(best, value)
    assert rates(tmp_path / "a") == pytest.approx(expected)
    assert len(set(expected)) > 1
    with pytest.raises(ValueError, match=r"mode='max'\) would lower the rate .* give mode='min'"):
        trainer(tmp_path / "b", **settings, scheduler=plateau("max")).fit()
    assert not rates(tmp_path / "b"), "before the first iteration"
    run = trainer(tmp_path / "c", **settings, scheduler=plateau("min"))
    run.validation = None
    with pytest.raises(ValueError, match="ReduceLROnPlateau goes by validations"):
        run.fit()


def test_what_is_refused(tmp_path: Path) -> None:
    def step(optimizer: Any) -> StepLR:
        return StepLR(optimizer, 2)

    with pytest.raises(ValueError, match=r"schedule='cosine', warmup=0 and a scheduler \(StepLR\)"):
        trainer(tmp_path, scheduler=step)
    other = step(SGD(nn.Linear(1, 1).parameters(), 0.1))
    with pytest.raises(ValueError, match="scheduler is of another optimizer"):
        trainer(tmp_path, scheduler=other, schedule="constant")
    with pytest.raises(ValueError, match="scheduler made a int"):
        trainer(tmp_path, scheduler=lambda optimizer: 3, schedule="constant")
    run = trainer(tmp_path, scheduler=step, schedule="constant")
    run.save()
    for scheduler in (None, lambda o: ReduceLROnPlateau(o)):
        again = trainer(tmp_path, scheduler=scheduler, schedule="constant")
        with pytest.raises(ValueError, match="written with scheduler=StepLR, and the trainer has"):
            again.resume(tmp_path / "last.safetensors")
    kept = run.rates._scheduler
    assert kept is not None
    kept.odd = object()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="odd is a object, which a checkpoint cannot hold"):
        trainer(tmp_path, scheduler=lambda o: _with(StepLR(o, 1)), schedule="constant")


def _with(scheduler: StepLR) -> StepLR:
    scheduler.odd = object()  # type: ignore[attr-defined]
    return scheduler
