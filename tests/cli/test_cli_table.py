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
