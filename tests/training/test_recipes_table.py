"""Runs on a table: what they are made of, finite sets, and other data than before."""

from __future__ import annotations

import csv
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from places import EXAMPLES
from torch import nn

import fastmaml as fm
from fastmaml.episodes import EachTask, Table
from fastmaml.training.config import TableConfig
from fastmaml.training.evaluation import evaluate
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_episodes, build_evaluator, build_maml, build_trainer
from fastmaml.training.recipes.build import recipe


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """The table of the example, of few users."""
    path = tmp_path / "users.csv"
    runpy.run_path(str(EXAMPLES / "users.py"))["make"](path, users=30)
    return path


def config(users: Path, **changes: Any) -> TableConfig:
    preset = PRESETS["table"]
    assert isinstance(preset, TableConfig)
    given = {"data": str(users), "task": "user", "target": "minutes", "tasks": 4, "plots": False}
    given |= {"inner_steps": 2, "executor": "eager"}
    return replace(preset, **given | {"out": str(users.parent / "run"), **changes})


def test_the_parts_of_a_run(users: Path) -> None:
    made = config(users, hidden_layers="8, 6", shots="3-5", queries="2")
    maml = build_maml(made)
    assert [tuple(p.shape) for p in maml.module.parameters() if p.ndim == 2] == [
        (8, 5),
        (6, 8),
        (1, 6),
    ]
    assert maml.loss is fm.losses.regression
    train, test = (build_episodes(made, split) for split in ("train", "test"))
    assert isinstance(train, Table)
    assert (train.tasks, train.sizes.shots, train.sizes.queries) == (4, (3, 5), 2)
    assert isinstance(test, EachTask)
    assert test.total == 4
    classes = config(users, target="weather", kind="classification", dtype="float64")
    assert build_maml(classes).loss is nn.functional.cross_entropy
    inputs = next(iter(build_episodes(classes, "train"))).support.inputs
    assert inputs.dtype == torch.float64


def test_validation_is_where_tasks_are_held_out(users: Path) -> None:
    assert recipe(config(users)).validated
    assert not recipe(config(users, validation_tasks="0")).validated
    assert recipe(config(users, validation_tasks="user 3,user 4")).validated
    assert [
        x.names for x in [build_episodes(config(users, test_tasks="user 3"), "test").source]
    ] == [  # type: ignore[attr-defined]
        ("user 3",)
    ]
    with users.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split, validated in (("val", True), ("test", False)):
        for row in rows:
            row["part"] = "train" if row["user"] > "user 2" else split
        with users.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        assert recipe(config(users, split_column="part")).validated is validated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "data='': give a table, such as --data users.csv"),
        ({"shots": "many"}, "shots='many': give a number, such as 5 or 0.5"),
        ({"shots": "2.5"}, "shots='2.5': give a whole number"),
        ({"queries": "half"}, "queries='half': give a whole number"),
        ({"hidden_layers": "big"}, "hidden_layers='big': give a whole number"),
        ({"target": "minute"}, "target='minute': .* has no such column .did you mean 'minutes'"),
        ({"metrics": "f1"}, "metrics has 'f1', which is of classification, and these tasks are"),
    ],
)
def test_bad_settings(users: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_trainer(config(users, **changes))


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(users: Path) -> None:
    made = config(users, iterations=4, checkpoint_every=2, schedule="constant", evaluate_every=0)
    whole = build_trainer(made)
    whole.fit()
    half = build_trainer(replace(made, iterations=2, out=str(users.parent / "half")))
    half.fit()
    rest = build_trainer(replace(made, out=str(users.parent / "half")))
    rest.resume(users.parent / "half" / "last.safetensors")
    rest.fit()
    for a, b in zip(whole.maml.parameters(), rest.maml.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_table_is_refused(users: Path) -> None:
    """Also where it has other columns, whose weights would not fit, and in evaluation."""
    made = config(users, iterations=2, evaluate_every=0)
    run = build_trainer(made)
    run.fit()
    text = users.read_text()
    saved = users.parent / "run" / "last.safetensors"
    for old, new in ((",dry,", ",wet,"), ("\n", "\nuser 1,1.0,9,fog,7\n")):
        users.write_text(text.replace(old, new, 1))
        again = build_trainer(made)
        with pytest.raises(ValueError, match="the table has changed since the state was saved"):
            again.resume(saved)
        with pytest.raises(ValueError, match="the table has changed"):
            build_evaluator(made, "test", trained_on=run._source_state())
    users.write_text(text)
    build_evaluator(made, "test", trained_on=run._source_state())


def test_all_of_a_finite_set_is_evaluated(users: Path) -> None:
    """As each task by itself, however many are in a meta-batch, and the last one is smaller."""
    made = config(users, dtype="float64")
    maml = build_maml(made)
    test = fm.episodes.table(
        users, task="user", target="minutes", split="test", tasks=4, test_tasks=6,
        validation_tasks=0, dtype=torch.float64,
    )  # fmt: skip
    found = evaluate(maml, test.all(4), None, 2, metrics="rmse")
    alone = [maml.evaluate(one, 2).loss.item() for batch in test.all(4) for one in batch]
    assert found.episodes == len(alone) == 6
    assert found.means[-1] == pytest.approx(sum(alone) / 6, rel=1e-12)
    assert evaluate(maml, test.all(), 100, 2).episodes == 6
    assert evaluate(maml, test.all(), 3, 2).episodes == 3
    with pytest.raises(ValueError, match="count=None, but a Table may have no end"):
        evaluate(maml, test, None, 2)
    roots = torch.tensor(alone).sqrt().mean().item()
    assert found.scores["rmse"].means[-1] == pytest.approx(roots, rel=1e-6)


def test_errors_are_told_in_the_units_of_the_target(users: Path) -> None:
    made = config(users)
    (metric,) = recipe(made).metrics().everywhere
    train = build_episodes(made, "train")
    assert isinstance(train, Table)
    assert metric.unit == train.scaling.targets["minutes"][1]  # type: ignore[attr-defined]
    assert recipe(config(users, metrics="pearson")).metrics().names == ["pearson"]
    assert recipe(config(users, target="minutes,km")).metrics().names == []


def test_the_trainer_takes_a_finite_test(users: Path) -> None:
    """Validation and test have every task once, and are told of as many."""
    columns: dict[str, Any] = {"task": "user", "target": "minutes", "tasks": 4}
    train = fm.episodes.table(users, **columns)
    test = fm.episodes.table(users, **columns, split="test").all()
    loop = fm.LoopConfig(iterations=2, plots=False, out=str(users.parent / "own"))
    maml = fm.MAML(fm.models.mlp(train.features, 1), 0.05, loss=train.loss)
    trainer = fm.MetaTrainer(maml, train, config=loop, validation=test, test=test, screen=False)
    assert trainer.fit().episodes == 4
