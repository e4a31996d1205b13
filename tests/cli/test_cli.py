"""The command line: what it prints, what it returns and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmaml
from fastmaml.cli import main
from fastmaml.training import checkpoint
from fastmaml.training.checkpoint import Checkpoint
from fastmaml.training.config import read_toml
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_maml, build_trainer

SMALL = [
    *("--filters", "8", "--tasks", "4", "--evaluate-every", "2", "--validation-episodes", "4"),
    *("--test-episodes", "8", "--threads", "1", "--no-plots", "--schedule", "constant"),
]


def small_run(out: Path, *flags: str) -> list[str]:
    return ["train", "digits", "--out", str(out), *SMALL, *flags]


def tensors(path: Path, *parts: str) -> dict[str, torch.Tensor]:
    state: Any = checkpoint.load(path).state
    for part in parts:
        state = state[part]
    return dict(state)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    run = [sys.executable, "-c", code]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run of 4 iterations."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert main(small_run(folder, "--iterations", "4")) == 0
    return folder


def test_importing_brings_torch_alone() -> None:
    extras = "{'tyro', 'rich', 'matplotlib', 'safetensors', 'tensorboard', 'PIL', 'sklearn'}"
    assert (
        python(f"import sys, fastmaml.training.trainer; print({extras} & set(sys.modules))")
        == "set()\n"
    )


def test_help_brings_no_heavy_extra() -> None:
    code = """
import sys
from fastmaml.cli import main
try:
    main(["train", "digits", "--help"])
except SystemExit as stop:
    print(stop.code)
print({"matplotlib", "tensorboard", "PIL", "sklearn", "datasets"} & set(sys.modules))
"""
    printed = python(code)
    assert "--inner-lr FLOAT" in printed
    assert printed.endswith("0\nset()\n")


def test_a_run_leaves_files_that_agree(folder: Path) -> None:
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["iteration"] for x in lines] == [0, 1, 2, 3, 4]
    result = json.loads((folder / "result.json").read_text())
    saved = checkpoint.load(folder / "last.safetensors")
    assert result["config"] == saved.config
    assert (result["config"]["filters"], result["config"]["ways"]) == (8, 5)
    assert result["test"]["chance"] == pytest.approx(0.2)
    assert saved.iteration == result["iterations"] == 4
    assert {x.name for x in folder.iterdir()} == {
        *("last.safetensors", "best.safetensors", "metrics.jsonl", "result.json"),
    }


def test_eval_repeats_the_final_test(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = json.loads((folder / "result.json").read_text())["test"]
    assert test["episodes"] == 8
    capsys.readouterr()
    assert main(["eval", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "test episodes" in printed
    assert "8/8" in printed  # the bar
    assert f"{100 * test['accuracy']:.1f} ± {100 * test['interval_95']:.1f}%" in printed
    assert f"{100 * test['no_adaptation']:.1f} ±" in printed
    assert main(["eval", str(folder / "last.safetensors"), "--episodes", "8", "--steps", "3"]) == 0
    assert re.search(r"│ 3 +│", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "episodes", "steps"),
    [
        ([], 8, 2),
        (["--change", "test_episodes=12", "eval_steps=1"], 12, 1),
        (["--change", "test_episodes=12", "--episodes", "5"], 5, 2),
        (["--split", "validation"], 4, 2),
        (["--split", "train", "--steps", "0"], 8, 0),
    ],
)
def test_how_much_eval_evaluates(
    folder: Path, flags: list[str], episodes: int, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As much as the run's own test did (two inner steps), unless something else is said."""
    capsys.readouterr()
    assert main(["eval", str(folder), *flags]) == 0
    printed = capsys.readouterr().out
    assert f"over {episodes} episodes" in printed
    assert f"{episodes}/{episodes}" in printed
    rows = re.findall(r"^│ (\d+)(?: \(no adaptation\))? +│", printed, re.MULTILINE)
    assert rows == [str(step) for step in range(steps + 1)]


def test_eval_has_the_numbers_of_the_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All digits of them."""
    found: list[Any] = []
    monkeypatch.setattr(
        "fastmaml.training.run_folder.show_evaluation", lambda *args: found.append(args[1])
    )
    assert main(["eval", str(folder)]) == 0
    assert found[0].as_dict() == json.loads((folder / "result.json").read_text())["test"]


@pytest.mark.slow
def test_resume_takes_the_configuration_over(folder: Path, tmp_path: Path) -> None:
    longer, whole = tmp_path / "longer", tmp_path / "whole"
    path = folder / "last.safetensors"
    more = ["--iterations", "6"]
    assert main(["train", "digits", "--resume", str(path), "--out", str(longer), *more]) == 0
    assert main(small_run(whole, *more)) == 0
    a, b = (tensors(x / "last.safetensors", "maml") for x in (longer, whole))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_toml_flags_and_presets(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('ways = 3\nshots = 2\ninner_lr = 1\nrule = "momentum"\n')
    flags = ["--config", str(toml), "--shots", "4", "--iterations", "1"]
    assert main(small_run(tmp_path / "run", *flags)) == 0
    config = checkpoint.load(tmp_path / "run" / "last.safetensors").config
    assert (config["ways"], config["shots"], config["inner_lr"]) == (3, 4, 1.0)
    assert (config["rule"], config["queries"]) == ("momentum", PRESETS["digits"].queries)
    assert read_toml(toml)["ways"] == 3


def spoil(path: Path) -> Path:
    path.write_bytes(b"not a checkpoint")
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def foreign(path: Path) -> Path:
    checkpoint.save(path, Checkpoint({"iterations": 3}, 1, {}))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda t: ["train", "digit"], "digits, omniglot, sinusoid, images, cifar-fs"),
        (lambda t: ["train", "digits", "--wayz", "3"], "--ways"),
        (lambda t: ["train", "digits", "--rule", "sgdd"], "meta-sgd"),
        (lambda t: ["train", "digits", "--ways", "0"], "ways=0: give at least 1"),
        (lambda t: ["train", "digits", "--ways", "9"], "ways=9, but the data has 8 classes"),
        (lambda t: ["train", "digits", "--shots", "999"], "shots=999"),
        (lambda t: ["train", "digits", "--pool", "max"], "image_size=8 is too small"),
        (lambda t: ["train", "digits", "--device", "tpu9"], "device='tpu9' cannot be used here"),
        (lambda t: ["train", "digits", "--scope", "nosuch"], "scope='nosuch'"),
        (lambda t: ["train", "digits", "--gradient", "reptile", "--rule", "lslr"], "Reptile"),
        (lambda t: ["train", "digits", "--gradient", "implicit"], "chain(Proximal(2.0), SGD(lr))"),
        (lambda t: ["train", "omniglot", "--root", str(t), "--no-download"], "omniglot"),
        (lambda t: ["train", "digits", "--config", str(t / "no")], "there is no such file"),
        (
            lambda t: ["train", "digits", "--config", str(write(t / "a.toml", "wayz = 3"))],
            "unknown keys: 'wayz' (did you mean 'ways'?)",
        ),
        (
            lambda t: ["train", "digits", "--config", str(write(t / "a.toml", "ways: 3"))],
            "is not a TOML file",
        ),
        (
            lambda t: ["train", "digits", "--config", str(write(t / "a.toml", 'ways = "3"'))],
            "ways='3' is a str; give a int",
        ),
        (
            lambda t: [
                "train",
                "sinusoid",
                "--config",
                str(write(t / "a.toml", 'dataset="digits"')),
            ],
            "type `fastmaml train digits` instead",
        ),
        (lambda t: ["train", "digits", "--out", str(t), "--resume"], "or train without --resume"),
        (lambda t: ["eval", str(t / "none")], "a .safetensors file that it wrote."),
        (lambda t: ["eval", str(spoil(t / "x.safetensors"))], "is damaged"),
        (lambda t: ["eval", str(foreign(t / "x"))], "not written by `fastmaml train`"),
    ],
)
def test_bad_input_is_a_paragraph(
    arguments: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path)
    before = sorted(tmp_path.iterdir())
    if given[0] == "train" and "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    try:
        code = main(given)
    except SystemExit as exit_:  # the parser's own
        code = exit_.code
    assert code == 2
    printed = capsys.readouterr().err
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert sorted(tmp_path.iterdir()) == before  # nothing half-written


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ways", "3"], "ways is 3 now and 5 there"),
        (["--iterations", "2"], "is at iteration 4, past iterations=2"),
    ],
)
def test_a_resume_that_contradicts(
    folder: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "metrics.jsonl").read_text()
    assert main(["train", "digits", "--resume", str(folder), *flags]) == 2
    assert message in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_loss_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    flags = ["--inner-lr", "1e38", "--evaluate-every", "0", "--no-plots", "--threads", "1"]
    assert main(["train", "sinusoid", "--out", out, *flags]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert f"fastmaml train sinusoid --resume {out}" in printed
    saved = checkpoint.load(tmp_path / "out" / "last.safetensors")
    assert all(x.isfinite().all() for x in saved.state["maml"].values())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path, number: int, code: int) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "fastmaml", *small_run(out, "--iterations", "100000")]
    root = str(Path(fastmaml.__file__).parents[1])
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 6:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.02)
    run.send_signal(number)
    printed = run.communicate(timeout=60)[1]
    assert run.returncode == code
    done = checkpoint.load(out / "last.safetensors").iteration
    assert f"Stopped after iteration {done}." in printed
    assert f"fastmaml train digits --resume {out}" in printed
    assert "Traceback" not in printed

    more = ["--iterations", str(done + 3)]
    assert main(["train", "digits", "--resume", str(out), *more]) == 0
    assert main(small_run(whole, *more)) == 0
    a, b = (tensors(x / "last.safetensors", "maml") for x in (out, whole))
    assert all(torch.equal(a[k], b[k]) for k in a)
    lines = [json.loads(x)["iteration"] for x in metrics.read_text().splitlines()]
    assert lines == list(range(done + 4))


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for expected in (fastmaml.__version__, torch.__version__, "cpu", "reference", "triton"):
        assert expected in printed


@pytest.mark.parametrize("data", ["digits", "omniglot", "sinusoid"])
def test_presets_describe_what_can_be_built(data: str) -> None:
    maml = build_maml(PRESETS[data])
    assert maml.steps == PRESETS[data].inner_steps


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "sinusoid", "dtype": "float64", "gradient": "mixed-mode", "inner_steps": 3},
        {"rule": "meta-sgd", "gradient": "checkpointed", "segments": 1},
        {"gradient": "mixed-mode", "segments": 1, "offload": True},
        {"rule": "momentum", "gradient": "truncated", "inner_steps": 2, "scope": "head"},
        {"rule": "adam", "inner_lr": 0.01, "optimizer": "adamw", "weight_decay": 0.1},
        {"rule": "lslr", "inner_steps": 2, "multi_step_until": 5, "gradient": "unrolled"},
        {"rule": "meta-curvature"},
        {"rule": "kfo"},
        {"rule": "alfa", "inner_steps": 2},
        {"gradient": "implicit", "proximal": 2.0, "inner_steps": 3, "inner_lr": 0.1},
        {"gradient": "reptile", "optimizer": "sgd", "tasks_chunk": 2},
    ],
)
def test_every_option_reaches_the_meta_step(tmp_path: Path, changes: dict[str, Any]) -> None:
    from dataclasses import replace

    config = replace(PRESETS[changes.get("dataset", "digits")], filters=8, tasks=4, **changes)
    trainer = build_trainer(replace(config, out=str(tmp_path), threads=None))
    before = {name: p.detach().clone() for name, p in trainer.maml.named_parameters()}
    line = trainer.step()
    assert line["loss"] > 0
    moved = [n for n, p in trainer.maml.named_parameters() if not torch.equal(p, before[n])]
    assert moved
    if config.rule in {"meta-sgd", "lslr", "meta-curvature", "kfo", "alfa"}:
        assert any(name.startswith("rates.") for name in moved)
    assert next(trainer.maml.parameters()).dtype == getattr(torch, config.dtype)
