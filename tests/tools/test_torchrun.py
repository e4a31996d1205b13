"""``torchrun -m fastmaml train``: stopped by SIGTERM, gone on with in one process, or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT

from fastmaml.training import checkpoint

pytestmark = pytest.mark.slow

TRAIN = ("-m", "fastmaml", "train", "digits", "--device", "cpu", "--no-plots")
SMALL = (
    *("--filters", "4", "--tasks", "4", "--dtype", "float64", "--schedule", "constant"),
    *("--evaluate-every", "5", "--validation-episodes", "4", "--test-episodes", "8"),
    *("--inner-steps", "1", "--executor", "eager"),
)
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def started(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def printed(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=300)[0]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_two_processes(tmp_path: Path) -> None:
    process = started(tmp_path, *LAUNCH, *TRAIN, *SMALL, "--name", "two", "--iterations", "100000")
    metrics, until = tmp_path / "runs/two/metrics.jsonl", time.monotonic() + 200
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 8:
        assert process.poll() is None, printed(process)
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said = printed(process)
    assert said.count("Stopped after iteration") == 1
    assert "Go on with: torchrun --nproc-per-node 2 -m fastmaml train digits --resume" in said
    saved = checkpoint.load(tmp_path / "runs/two/last.safetensors")
    assert saved.iteration == lines(tmp_path / "runs/two")[-1]["iteration"] >= 7
    assert {x.name for x in (tmp_path / "runs/two").iterdir()} == {
        *("last.safetensors", "best.safetensors", "metrics.jsonl"),
    }
    end = str(saved.iteration + 3)
    again = started(tmp_path, *TRAIN, "--resume", "runs/two", "--iterations", end)
    said = printed(again)
    assert again.returncode == 0, said
    whole = started(tmp_path, *TRAIN, *SMALL, "--name", "one", "--iterations", end)
    said = printed(whole)
    assert whole.returncode == 0, said
    assert "one: digits, 5-way 5-shot" in said
    one, two = (
        checkpoint.load(tmp_path / f"runs/{name}/last.safetensors") for name in ("one", "two")
    )
    for name, x in one.state["maml"].items():
        if name.endswith(
            ".0.bias"
        ):  # of convolutions: BatchNorm leaves them rounding for gradients
            continue
        torch.testing.assert_close(x, two.state["maml"][name], rtol=0, atol=1e-10)


def test_what_cannot_be_divided_is_one_line(tmp_path: Path) -> None:
    process = started(tmp_path, *LAUNCH, *TRAIN, *SMALL, "--tasks", "5")
    said = [line for line in printed(process).splitlines() if line.startswith("fastmaml: ")]
    assert said == [
        "fastmaml: tasks=5 of a meta-batch cannot be divided among 2 processes: give tasks=4 or "
        "tasks=6, or start another number of processes."
    ]
    assert process.returncode != 0
    assert not (tmp_path / "runs").exists()
