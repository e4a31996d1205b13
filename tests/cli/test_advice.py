"""Advice before a long run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastmaml.cli import main
from fastmaml.cli.advice import on_cpu
from fastmaml.training.presets import PRESETS

LARGE = nn.ParameterList([nn.Parameter(torch.zeros(1).expand(134_500_000))])
GLUE: Any = PRESETS["glue"]
INSTRUCTIONS: Any = PRESETS["instructions"]


def test_of_large_models_on_a_cpu_alone() -> None:
    said = on_cpu(INSTRUCTIONS, LARGE) or ""
    assert said.startswith("134.5 M parameters on a CPU: --quick is a first look")
    assert "fewer --tasks, --support, --query, --inner-steps and a smaller --max-length" in said
    assert "--executor eager" in said
    assert "--executor" not in (on_cpu(replace(INSTRUCTIONS, executor="eager"), LARGE) or "")
    assert "--ways, --shots" in (on_cpu(PRESETS["intents"], LARGE) or "")
    assert on_cpu(replace(GLUE, iterations=10), LARGE) is None, "as --quick has it"
    assert on_cpu(GLUE, nn.Linear(2, 2)) is None
    assert on_cpu(PRESETS["digits"], LARGE) is None
    assert on_cpu(GLUE, LARGE.to("meta")) is None, "another device"


def test_training_says_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastmaml.cli.advice.on_cpu", lambda config, maml: "take a smaller one.")
    flags = ["--iterations", "1", "--evaluate-every", "0", "--test-episodes", "2", "--no-plots"]
    asked = ["--tasks", "2", "--filters", "4", "--threads", "1", "--out", str(tmp_path)]
    assert main(["train", "digits", *flags, *asked]) == 0
    assert capsys.readouterr().err.startswith("fastmaml: take a smaller one.\n")
