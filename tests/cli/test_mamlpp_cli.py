"""`fastmaml train --mamlpp`: other defaults, which flags and files override."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastmaml.cli import main
from fastmaml.cli.flags import parse
from fastmaml.cli.main import _layered
from fastmaml.models import PerStep
from fastmaml.training.config import RunConfig, TrainConfig
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_maml

SMALL = [
    "--filters",
    "2",
    "--ways",
    "2",
    "--tasks",
    "2",
    "--evaluate-every",
    "0",
    "--test-episodes",
    "4",
]
SMALL += ["--iterations", "2", "--threads", "1", "--no-plots", "--inner-steps", "2"]


def configured(*flags: str) -> RunConfig:
    arguments = ["train", *flags]
    return _layered(parse(arguments, PRESETS), arguments)[0]


def shown(config: RunConfig) -> dict[str, Any]:
    names = ("rule", "inner_steps", "inner_lr", "schedule", "multi_step_until", "first_order_until")
    return {name: getattr(config, name) for name in (*names, "per_step_batch_norm", "eval_steps")}


def test_it_is_other_defaults() -> None:
    found = configured("omniglot", "--mamlpp", "--iterations", "300")
    assert shown(found) == {
        **{"rule": "lslr", "inner_steps": 5, "inner_lr": 0.1, "schedule": "cosine"},
        **{"multi_step_until": 30, "first_order_until": 150, "eval_steps": None},
        "per_step_batch_norm": True,
    }
    assert found.iterations == 300
    sinusoid = configured("sinusoid", "--mamlpp")
    assert not sinusoid.per_step_batch_norm
    assert sinusoid.first_order_until == 35_000
    assert shown(configured("digits")) == shown(PRESETS["digits"])


def test_flags_and_files_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("iterations = 50\ninner_steps = 3\nrule = 'sgd'\n")
    found = configured("digits", "--mamlpp", "--config", str(file), "--rule", "momentum")
    assert (found.rule, found.inner_steps) == ("momentum", 3)
    assert (found.iterations, found.first_order_until) == (50, 25)
    own = configured("digits", "--mamlpp", "--no-per-step-batch-norm", "--multi-step-until", "7")
    assert (own.per_step_batch_norm, own.multi_step_until) == (False, 7)


def test_a_run_is_saved_resumed_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--schedule", "constant", "--multi-step-until", "1", "--out", str(out)]
    assert main(["train", "digits", "--mamlpp", *SMALL, *flags]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["config"]["per_step_batch_norm"] is True
    assert result["config"]["first_order_until"] == 1
    again = ["train", "digits", "--resume", str(out), "--iterations", "3"]
    assert main([*again, "--mamlpp"]) == 2
    assert "--mamlpp with --resume: a run goes on as it was begun" in capsys.readouterr().err
    assert main(again) == 0
    assert main(["eval", str(out), "--episodes", "4", "--steps", "3"]) == 0


def test_the_recipe_makes_per_step_layers_or_says_why_not() -> None:
    config = TrainConfig(per_step_batch_norm=True, inner_steps=3, filters=4, threads=1)
    maml = build_maml(config)
    layers = [n for n, m in maml.module.named_modules() if isinstance(m, PerStep)]
    assert len(layers) == 4
    for name, p in maml.module.named_parameters():
        own = name.rpartition(".")[0] in layers
        assert maml.scope(name, p) != own  # type: ignore[operator]
        assert not own or p.shape == (3, 4)
    assert build_maml(config.updated({"scope": "head"}, "test")).scope == "head"
    with pytest.raises(ValueError, match="per_step_batch_norm=True: Sequential has no BatchNorm"):
        build_maml(TrainConfig(dataset="sinusoid", per_step_batch_norm=True, threads=1))
