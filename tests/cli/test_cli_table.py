"""``fastmaml train table`` and ``eval`` of its runs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from places import EXAMPLES

from fastmaml.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    runpy.run_path(str(EXAMPLES / "users.py"))["make"](place / "users.csv", users=30)
    return place


def train(place: Path, *flags: str) -> int:
    return main([
        *("train", "table", "--data", str(place / "users.csv"), "--task", "user"),
        *("--target", "minutes", "--tasks", "4", "--iterations", "4", "--no-plots"),
        *("--schedule", "constant", "--executor", "eager", "--out", str(place / "run"), *flags),
    ])  # fmt: skip


def test_a_run_is_tested_evaluated_and_extended(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, "--inputs", "km,weather") == 0
    result = json.loads((place / "run" / "result.json").read_text())
    assert result["title"] == "table users.csv, minutes by user"
    assert result["test"]["episodes"] == 4
    assert result["test"]["scores"]["rmse"]["rmse"] > 1  # minutes
    capsys.readouterr()
    assert main(["eval", str(place / "run")]) == 0
    told = capsys.readouterr().out
    assert "query rmse" in told
    assert "over 4 episodes" in told
    assert main(["train", "table", "--resume", str(place / "run"), "--iterations", "6"]) == 0


@pytest.mark.parametrize("targets", ["late,odd", "late"])
def test_labels(place: Path, tmp_path: Path, targets: str) -> None:
    lines = (place / "users.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    head = lines[0].split(",")
    at = head.index("minutes")
    bits = [[*row, str(int(float(row[at]) > 20)), str(i % 2)] for i, row in enumerate(rows)]
    table = tmp_path / "bits.csv"
    table.write_text("\n".join(",".join(row) for row in [[*head, "late", "odd"], *bits]))
    flags = ["--data", str(table), "--target", targets, "--inputs", "km", "--kind"]
    flags += ["multi-label", "--out", str(tmp_path / "run"), "--dtype", "float64"]
    flags += ["--evaluate-every", "2", "--best-by", "label_accuracy"]
    assert train(place, *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["test"]["scores"]) == ["label_accuracy"]
    assert 0 < result["test"]["scores"]["label_accuracy"]["label_accuracy"] < 1
    change = ("--change", "metrics=label_match", "best_by=none")
    assert main(["eval", str(tmp_path / "run"), *change]) == 0


def test_a_first_look_has_no_validation(place: Path, tmp_path: Path) -> None:
    flags = ("--quick", "--best-by", "rmse", "--patience", "2", "--out", str(tmp_path / "run"))
    assert train(place, "--inputs", "km", *flags) == 0


def test_what_cannot_be_done_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(place, "--target", "minute") == 2
    told = capsys.readouterr().err
    assert told.startswith("fastmaml: target='minute': ")
    assert "(did you mean 'minutes'?)" in told
    assert len(told.splitlines()) == 1


def test_another_table_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(place, "--out", str(place / "other"), "--quick") == 0
    path = place / "users.csv"
    text = path.read_text()
    try:
        path.write_text(text + "user 1,3.00,9,dry,77\n")
        capsys.readouterr()
        folder = str(place / "other")
        for command in (["train", "table", "--resume", folder], ["eval", folder]):
            assert main(command) == 2
            told = capsys.readouterr().err
            assert told.startswith("fastmaml: the table has changed since the state was saved")
            assert len(told.splitlines()) == 1
    finally:
        path.write_text(text)


def test_a_run_is_not_tested_on_what_it_was_trained_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor with numbers scaled otherwise; other shots are another question of the same tasks."""
    folder = str(place / "held")
    assert train(place, "--out", folder, "--quick") == 0
    for change in ("test_tasks=user 3,user 5", "validation_tasks=0.3", "scale=false"):
        capsys.readouterr()
        assert main(["eval", folder, "--change", change]) == 2
        told = capsys.readouterr().err
        assert told.startswith("fastmaml: the state is of other training tasks or another scaling")
        assert len(told.splitlines()) == 1
    assert main(["eval", folder, "--change", "shots=0.3"]) == 0


def test_numbers_may_be_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a TOML file and after --change, where "3" is a number and "1-2" is none."""
    settings = "shots = 3\ntest_tasks = 4\nvalidation_tasks = 0\nqueries = 1\nhidden_layers = 8\n"
    (place / "run.toml").write_text(f'dataset = "table"\n{settings}')
    folder = str(place / "numbers")
    assert train(place, "--out", folder, "--quick", "--config", str(place / "run.toml")) == 0
    for shots in ("2", "0.5", "1-2"):
        assert main(["eval", folder, "--change", f"shots={shots}"]) == 0
    capsys.readouterr()
    assert main(["eval", folder, "--change", "test_tasks=0.5"]) == 2
    assert "other training tasks" in capsys.readouterr().err
    for flags in (("--shots", "2-3"), ("--shots", "4"), ("--test-tasks", "user 3,user 5")):
        assert train(place, "--out", str(place / "flags"), "--quick", *flags) == 0
