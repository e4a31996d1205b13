"""A finished run goes among the results, and from there into a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.programs import training
from benchmarks.tables import policies as policy_tables
from benchmarks.tables.documents import learned_row

COMMON = {"title": "a run", "iterations": 3, "seconds": 120.0, "device": "here", "versions": {}}
TEST = {"interval_95": 0.5, "no_adaptation": 0.25, "no_adaptation_interval_95": 0.1, "steps": 3}


def kept(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: Any, **more: Any) -> dict[str, Any]:
    run, results = folder / "run", folder / "results"
    for made in (run, results, folder / "docs" / "figures"):
        made.mkdir(parents=True)
    (run / "curves.png").write_bytes(b"picture")
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (run / "result.json").write_text(json.dumps(COMMON | more))
    monkeypatch.setattr(training, "folder", lambda device: results)
    monkeypatch.setattr(training, "ROOT", folder)
    monkeypatch.setattr(sys, "argv", ["training", str(run)])
    training.main()
    (path,) = results.iterdir()
    (figure,) = (folder / "docs" / "figures").iterdir()
    assert figure.stem == path.stem
    found: dict[str, Any] = json.loads(path.read_text())
    assert "out" not in found["config"]
    return found | {"stem": path.stem}


def test_a_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"iteration": 0, "validation": {"accuracy": 0.2, "interval_95": 0.1}},
        *({"iteration": i, "loss": 1.0 / i, "accuracy": 0.1 * i} for i in (1, 2)),
        {"iteration": 3, "loss": 0.3, "accuracy": 0.3, "validation": {"accuracy": 0.7}},
    ]
    config = {"dataset": "digits", "tasks": 4, "out": "somewhere"}
    test = TEST | {"accuracy": 0.75, "chance": 0.2, "episodes": 600}
    found = kept(tmp_path, monkeypatch, lines, config=config, test=test)
    assert found["stem"] == "train_digits"
    assert found["learning_curve"] == {
        "loss": [[1, 1.0], [2, 0.5], [3, 0.3]],
        "accuracy": [[1, 0.1], [2, 0.2], [3, 0.3]],
    }
    assert found["validation_curve"] == [[0, 0.2], [3, 0.7]]
    row = learned_row("train_digits.png", found)
    assert row[0] == "[a run](../figures/train_digits.png)"
    assert row[-1] == "3 x 4 tasks, 2 min"


def test_a_run_of_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"iteration": 0, "validation": {"return": -9.0, "interval_95": 1.0}},
        *({"iteration": i, "loss": 1e-9, "return": 10.0 * i, "no_adaptation": -i} for i in (1, 2)),
        {"iteration": 3, "loss": 1e-9, "return": 50.0, "no_adaptation": -3.0},
    ]
    config = {"dataset": "cheetah-dir", "tasks": 4, "trajectories": 5, "out": "somewhere"}
    steps = {"per_step": [-30.0, 290.0, 310.0, 312.0], "per_step_interval_95": [1.0, 9.0, 8.0, 7.0]}
    test = TEST | steps | {"return": 312.0, "chance": -20.0, "episodes": 40}
    found = kept(tmp_path, monkeypatch, lines, config=config, test=test)
    assert found["stem"] == "policy_cheetah-dir"
    assert set(found["learning_curve"]) == {"return", "no_adaptation"}
    assert found["validation_curve"] == [[0, -9.0]]
    text = policy_tables.runs({"policy_cheetah-dir.png": found})
    cells = "| -30 ± 1 | 290 ± 9 | 310 ± 8 | 312 ± 7 | -20 | 3 x 4 tasks x 5 trajectories, 2 min |"
    assert f"| [cheetah-dir](../figures/policy_cheetah-dir.png) {cells}" in text
