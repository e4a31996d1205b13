"""With every option of the trainer: interrupted and resumed is as uninterrupted, bit for bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sinusoid_runs import Watched, final_state, lines, trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from fastmaml.training import checkpoint
from fastmaml.training.callbacks import Callback
from fastmaml.training.interrupts import Interrupted
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.trainer import MetaTrainer


class Mean(Callback):
    """Keeps a number of its own, and stops the run at iteration 9."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        self.total, self.count = self.total + line["loss"], self.count + 1
        if trainer.iteration == 9:
            trainer.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.count = state["total"], state["count"]


Make = Callable[[Optimizer], LRScheduler]
CONSTANT = {"schedule": "constant"}


def sequence(optimizer: Optimizer) -> SequentialLR:
    parts = [LinearLR(optimizer, 0.1, total_iters=4), MultiStepLR(optimizer, [3])]
    return SequentialLR(optimizer, parts, [4])


OPTIONS: dict[str, tuple[dict[str, Any], Make | None]] = {
    "accumulate": ({"accumulate": 3}, None),
    "average": ({"ema": 0.8}, None),
    "warm-up": ({"warmup": 4}, None),
    "linear": ({"schedule": "linear", "warmup": 2}, None),
    "step": ({"schedule": "step", "step_every": 3, "step_factor": 0.5}, None),
    "patience": ({"patience": 1, "evaluate_every": 1, "meta_lr": 0.5}, None),
    "autocast": ({"autocast": "bfloat16"}, None),
    "last": ({"test_on": "last"}, None),
    "everything": ({"accumulate": 2, "ema": 0.8, "warmup": 2, "patience": 2}, None),
    "lambda": (CONSTANT, lambda o: LambdaLR(o, lambda i: 1 / (1 + i))),
    "one cycle": (CONSTANT, lambda o: OneCycleLR(o, 0.02, total_steps=10)),
    "restarts": (CONSTANT, lambda o: CosineAnnealingWarmRestarts(o, 4)),
    "sequence": (CONSTANT, sequence),
    "plateau": (
        CONSTANT | {"evaluate_every": 1, "ema": 0.5},
        lambda o: ReduceLROnPlateau(o, "min", 0.5, patience=0),
    ),
}


def run_of(folder: Path, name: str, train: Any = None, seed: int = 0) -> MetaTrainer:
    changes, scheduler = OPTIONS[name]
    own = {"scheduler": scheduler, "callbacks": [Mean()], "executor": "eager"}
    return trainer(folder, train, seed, **own, **changes)


@pytest.mark.sampled(at_most=6)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("at", [4, 7])
def test_resumed_is_as_uninterrupted(tmp_path: Path, name: str, at: int) -> None:
    whole = run_of(tmp_path / "whole", name)
    expected = whole.fit()
    ends = whole.iteration
    at = min(at, ends) if name != "patience" else 1
    drawn = at * whole.config.accumulate
    stopped = run_of(
        tmp_path / "run", name, Watched(drawn, lambda: signal.raise_signal(signal.SIGINT))
    )
    with pytest.raises(Interrupted):
        stopped.fit()
    again = run_of(tmp_path / "run", name, seed=5)
    torch.manual_seed(99)  # nothing may hang on what happened before
    again.resume(tmp_path / "run" / "last.safetensors")
    assert again.iteration in (at, at - 1)
    found = again.fit()
    assert again.iteration == ends
    assert found == expected
    own, other = (run.maml.state_dict() for run in (again, whole))
    assert all(torch.equal(own[key], other[key]) for key in other)  # what was tested
    assert all(map(torch.equal, final_state(again), final_state(whole)))
    assert lines(again.folder) == lines(whole.folder)
    for file in ("last.safetensors", "best.safetensors"):
        same(*(checkpoint.load(run.folder / file) for run in (again, whole)))
    results = [json.loads((run.folder / "result.json").read_text()) for run in (again, whole)]
    assert results[0]["tested"] == results[1]["tested"]


def same(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> None:
    assert (a.iteration, a.state["best"]) == (b.iteration, b.state["best"])
    assert a.state["callbacks"] == b.state["callbacks"]
    assert a.state["scheduler"] == b.state["scheduler"]
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(x, b.weights[name]) for name, x in a.weights.items())


@pytest.mark.slow
def test_every_option_matters_in_the_runs_above(tmp_path: Path) -> None:
    """Otherwise they would show nothing."""
    tested = {}
    for name in OPTIONS:
        run = run_of(tmp_path / name, name)
        run.fit()
        rates = tuple(x["lr"] for x in lines(run.folder) if "lr" in x)
        weights = checkpoint.load(run.folder / "last.safetensors").weights
        on = json.loads((run.folder / "result.json").read_text())["tested"]["on"]
        tested[name] = on, rates, *(tuple(x.flatten().tolist()) for x in weights.values())
    assert len(set(tested.values())) == len(OPTIONS)
