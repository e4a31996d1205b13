"""The best validation: saved, tested, and waited for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sinusoid_runs import lines, trainer

from fastmaml.training import checkpoint
from fastmaml.training.best import Best, figure
from fastmaml.training.config import LoopConfig
from fastmaml.training.evaluation import evaluate

WORSE = {"meta_lr": 1.0, "schedule": "constant", "clip": None, "evaluate_every": 2}
"""Steps so large that validations get worse."""


def validations(folder: Path) -> dict[int, float]:
    found = [x for x in lines(folder) if "validation" in x]
    return {x["iteration"]: x["validation"]["loss"] for x in found if x["iteration"]}


def test_the_best_validation_is_tested(tmp_path: Path) -> None:
    run = trainer(tmp_path, executor="eager", **WORSE)
    found = run.fit()
    seen = validations(tmp_path)
    best = min(seen, key=lambda i: seen[i])
    assert best < run.iteration
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tested"] == {"iteration": best, "on": "best"}
    assert result["iterations"] == run.iteration == 10
    saved = checkpoint.load(tmp_path / "best.safetensors")
    assert saved.iteration == best
    for name, x in run.maml.state_dict().items():
        assert torch.equal(x, saved.weights[name]), "the learner has what was tested"
    assert run.test is not None
    assert evaluate(run.maml, iter(run.test), 10, 2) == found
    run.save(tmp_path / "again.safetensors")  # goes on from what was trained
    last = checkpoint.load(tmp_path / "last.safetensors")
    again = checkpoint.load(tmp_path / "again.safetensors")
    for name, x in last.state["maml"].items():
        assert torch.equal(x, again.state["maml"][name])
    assert not list(tmp_path.glob("**/*.tmp"))


def test_another_fit_tests_again(tmp_path: Path) -> None:
    run = trainer(tmp_path, executor="eager", **WORSE)
    found = run.fit()
    before = lines(tmp_path)
    assert run.fit() == found
    assert lines(tmp_path) == before
    assert not (tmp_path / "earlier-1").exists()


def test_what_a_checkpoint_does_not_know_has_its_default() -> None:
    saved = LoopConfig().as_dict()
    del saved["ema"], saved["accumulate"]
    assert LoopConfig().differences(saved) == []
    assert LoopConfig(ema=0.9).differences(saved) == ["ema is 0.9 now and 0.0 there"]
    longer = LoopConfig(iterations=2000, schedule="linear")
    saved = LoopConfig(schedule="linear").as_dict()
    (found,) = longer.differences(saved)
    assert found.endswith("1000 there (schedule='linear' ends with them)")
    step = {"schedule": "step", "step_every": 5}
    assert LoopConfig(iterations=9, **step).differences(LoopConfig(**step).as_dict()) == []


def test_the_last_one_is_tested_where_that_is_asked_for(tmp_path: Path) -> None:
    run = trainer(tmp_path, executor="eager", **WORSE, test_on="last")
    run.fit()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tested"] == {"iteration": 10, "on": "last"}
    last = checkpoint.load(tmp_path / "last.safetensors").weights
    assert all(torch.equal(x, last[name]) for name, x in run.maml.state_dict().items())


def test_without_validation_the_last_one_is_tested(tmp_path: Path) -> None:
    trainer(tmp_path, evaluate_every=0).fit()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tested"] == {"iteration": 10, "on": "last"}
    assert not (tmp_path / "best.safetensors").exists()


def test_patience_ends_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, executor="eager", **WORSE, patience=2)
    run.fit()
    seen = validations(tmp_path)
    best = min(seen, key=lambda i: seen[i])
    assert run.iteration == best + 4 < 10
    longer = trainer(tmp_path, executor="eager", **WORSE, patience=4)  # more of it goes on
    longer.resume(tmp_path / "last.safetensors")
    longer.fit()
    assert longer.iteration > run.iteration


def test_a_finished_run_is_extended_and_tested_again(tmp_path: Path) -> None:
    short = {"schedule": "constant", "iterations": 6}
    trainer(tmp_path / "a", **short).fit()
    first = json.loads((tmp_path / "a" / "result.json").read_text())
    longer = trainer(tmp_path / "a", **short | {"iterations": 12})
    longer.resume(tmp_path / "a" / "last.safetensors")
    longer.fit()
    second = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (first["iterations"], second["iterations"]) == (6, 12)
    assert [x["iteration"] for x in lines(tmp_path / "a")] == list(range(13))
    assert not (tmp_path / "a" / "earlier-1").exists()


def test_resumed_in_another_folder_the_best_one_comes_along(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", **WORSE, iterations=8)
    run.fit()
    assert run.best.iteration < 8
    moved = trainer(tmp_path / "b", **WORSE)
    moved.resume(tmp_path / "a" / "last.safetensors")
    moved.fit()
    found = checkpoint.load(tmp_path / "b" / "best.safetensors")
    assert found.iteration == moved.best.iteration == run.best.iteration
    (tmp_path / "a" / "best.safetensors").unlink()
    with pytest.raises(ValueError, match=r"best validation was at iteration .* beside it"):
        trainer(tmp_path / "c", **WORSE).resume(tmp_path / "a" / "last.safetensors")


def test_averaged_weights_are_validated_and_tested(tmp_path: Path) -> None:
    run = trainer(tmp_path, executor="eager", ema=0.9, evaluate_every=10)
    run.fit()
    saved = checkpoint.load(tmp_path / "last.safetensors")
    averages, trained = saved.state["averages"], saved.state["maml"]
    assert averages.keys() == {name for name, _ in run.maml.named_parameters()}
    assert not any(torch.equal(x, trained[name]) for name, x in averages.items())
    assert run.validation is not None
    last = lines(tmp_path)[-1]["validation"]["loss"]
    for name, p in run.maml.named_parameters():
        p.data.copy_(averages[name])
    assert evaluate(run.maml, iter(run.validation), 6, 2).means[-1] == last


def test_averages_are_those_of_the_formula(tmp_path: Path) -> None:
    run = trainer(tmp_path, ema=0.3, schedule="constant")
    expected = [p.detach().clone() for p in run.maml.parameters()]
    for n in range(1, 6):
        run.step()
        kept = min(0.3, (1 + n) / (10 + n))
        expected = [
            kept * old + (1 - kept) * p.detach()
            for old, p in zip(expected, run.maml.parameters(), strict=True)
        ]
    assert run._averages is not None
    for mine, own in zip(run._averages.state_dict().values(), expected, strict=True):
        torch.testing.assert_close(mine, own)


def test_a_validation_that_is_no_number_is_not_the_best() -> None:
    best = Best(None)
    assert not best.seen(0, math.nan, True)
    assert best.seen(1, 3.0, True)
    assert not best.seen(2, math.nan, True)
    assert not best.seen(3, 3.0, True)  # the earlier of two that are alike
    assert best.waited == 2
    assert best.seen(4, 2.0, True)
    assert not best.seen(5, 1.0, False)
    assert (best.iteration, best.value, best.waited) == (4, 2.0, 1)


def test_what_decides() -> None:
    validation = {"accuracy": 0.5, "scores": {"f1": {"f1": 0.25}, "loss": {"loss": 2.0}}}
    assert figure(validation, None) == (0.5, False)
    assert figure(validation, "f1") == (0.25, False)
    assert figure(validation, "loss") == (2.0, True)
    assert figure(validation, "f1", {"f1"})[1]
    assert figure({"return": -3.0}, None) == (-3.0, False)
    with pytest.raises(ValueError, match="best_by='matthews': validations have accuracy, f1, loss"):
        figure(validation, "matthews")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patience": 2, "evaluate_every": 0}, "patience=2 with evaluate_every=0"),
        ({"patience": 0}, "patience=0: give at least 1"),
        ({"warmup": 1000}, "warmup=1000 with iterations=1000: give fewer"),
        ({"schedule": "step"}, "step_every=None with schedule='step'"),
        ({"step_every": 5}, "step_every=5 with schedule='constant'"),
        ({"ema": 1.0}, "ema=1.0: give less than 1"),
        ({"accumulate": 0}, "accumulate=0: give at least 1"),
        ({"autocast": "float16"}, "autocast='float16': choose one of none, bfloat16"),
        ({"name": "a/b"}, "name='a/b': give a name without slashes"),
        ({"loggers": "wandb,mflow"}, r"'mflow' \(did you mean 'mlflow'\?\)"),
    ],
)
def test_what_configurations_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopConfig(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2}, "patience=2 goes by validations, and there are none"),
        ({"best_by": "loss"}, "best_by='loss' goes by validations"),
    ],
)
def test_what_needs_validations_is_refused_without(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = trainer(tmp_path / "run", **changes)
    run.validation = None
    with pytest.raises(ValueError, match=message):
        run.fit()
    with pytest.raises(ValueError, match="best_by='f1': it is none of the scores"):
        trainer(tmp_path / "run", best_by="f1").fit()
    assert not (tmp_path / "run").exists()


def test_runs_have_names() -> None:
    assert LoopConfig().folder == Path("runs/run")
    named = LoopConfig(name="first")
    assert (named.folder, named.full_title) == (Path("runs/first"), "first: meta-training")
    assert LoopConfig(name="first", out="there").folder == Path("there")
    assert LoopConfig().full_title == "meta-training"
