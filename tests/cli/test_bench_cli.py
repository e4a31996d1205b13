"""``fastmaml bench`` and the functions of one's own that it measures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fastmaml as fm
from fastmaml.cli import main
from fastmaml.cli.errors import BadInputError
from fastmaml.cli.factory import is_factory, load_factory

QUICK = ["--methods", "unrolled", "first-order", "--sweep-steps", "1", "2", "--repeats", "2"]
QUICK += ["--seconds", "0.01"]
DIGITS = ["bench", "digits", "--filters", "8", "--tasks", "2", "--threads", "1", *QUICK]

MODULE = """
import time
import torch
from torch import nn
from torch.nn import functional as F
import fastmaml as fm

calls = {"left": None}

def loss(output, target):
    if calls["left"] is not None:
        calls["left"] -= 1
        if calls["left"] < 0:
            raise KeyboardInterrupt
    return F.mse_loss(output, target)

def make():
    torch.manual_seed(0)
    maml = fm.MAML(nn.Linear(3, 2), lr=0.1, loss=loss, executor="eager")
    x, y = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 2)
    return maml, fm.Episodes(fm.Batch(x[0], y[0]), fm.Batch(x[1], y[1]))

def stopping():
    calls["left"] = 80
    return make()

def with_optimizer():
    maml, episodes = make()
    return maml, [episodes], torch.optim.SGD(maml.parameters(), 0.1)

def with_test():
    maml, episodes = make()
    return maml, [episodes] * 9, None, episodes

def slow():
    def waiting(output, target):
        time.sleep(0.02)
        return F.mse_loss(output, target)

    maml, episodes = make()
    return fm.MAML(maml.module, lr=0.1, loss=waiting, executor="eager"), episodes

def bad_model():
    class Broken(nn.Linear):
        def forward(self, x):
            raise ValueError("my model's own")

    maml, episodes = make()
    return fm.MAML(Broken(3, 2), lr=0.1, loss=loss), episodes

def bad_arguments():
    return fm.MAML(nn.Linear(3, 2), lr=0.1, steps=-1)

def one():
    return make()[0]

def no_maml():
    return nn.Linear(3, 2), make()[1]

def no_episodes():
    return make()[0], 3

def no_optimizer():
    return (*make(), "adam")

def no_test():
    return (*make(), None, 3)

def failing():
    raise OSError("my file is missing")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    (tmp_path / "own_for_bench.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "own_for_bench", raising=False)
    return "own_for_bench"


@pytest.mark.slow
def test_a_data_set_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "found"
    flags = ["--vs", "first-order", "--budget", "8GB", "--out", str(folder)]
    assert main([*DIGITS, *flags]) == 0
    printed = capsys.readouterr().out
    assert "digits, 5-way 5-shot" in printed
    assert "second order against first order" in printed
    assert "with 8.0 GB for a meta-step" in printed
    saved = json.loads((folder / "bench.json").read_text())
    assert [(c["method"], c["steps"], c["tasks"]) for c in saved["cells"]] == [
        ("Unrolled", 1, 2),
        ("FirstOrder", 1, 2),
        ("Unrolled", 2, 2),
        ("FirstOrder", 2, 2),
    ]
    assert len(saved["second_order"]) == 2
    assert {x.name for x in folder.iterdir()} == {"bench.json", "bench.png"}


@pytest.mark.slow
def test_the_configuration_is_as_in_train(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('ways = 3\nrule = "momentum"\nscope = "head"\n')
    out = tmp_path / "found"
    flags = ["--config", str(toml), "--ways", "2", "--sweep-tasks", "1", "3", "--out", str(out)]
    flags += ["--executors", "eager", "auto", "--sweep-steps", "1"]
    assert main([*DIGITS, *flags]) == 0
    saved = json.loads((out / "bench.json").read_text())
    assert saved["title"] == "digits, 2-way 5-shot"
    found = {(c["method"], c["tasks"], c["executor"]) for c in saved["cells"]}
    assert len(found) == 2 * 2 * 2
    assert {tasks for _, tasks, _ in found} == {1, 3}
    assert {executor for _, _, executor in found} == {None, "eager"}


def test_a_module_of_one_s_own(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", f"{own}:make", *QUICK]) == 0
    assert "Linear, 8 parameters" in capsys.readouterr().out
    saved = json.loads((tmp_path / "runs/bench/bench.json").read_text())
    assert len(saved["cells"]) == 4
    assert all(c["gradient_error"] < 1e-5 for c in saved["cells"] if c["exact"])


@pytest.mark.slow
def test_ctrl_c_prints_and_writes(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stopped"
    assert main(["bench", f"{own}:stopping", *QUICK, "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().out
    saved = json.loads((out / "bench.json").read_text())
    assert saved["interrupted"] is True
    assert 1 <= len(saved["cells"]) < 4


@pytest.mark.slow
def test_accuracy_of_a_module_of_one_s_own(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--vs", "first-order", "--accuracy", "2", "--sweep-steps", "1"]
    assert main(["bench", f"{own}:make", *QUICK, *flags]) == 2
    assert "let own_for_bench:make return (maml, episodes, optimizer, test)" in (
        capsys.readouterr().err
    )
    assert main(["bench", f"{own}:with_test", *QUICK, *flags]) == 0
    saved = json.loads((tmp_path / "runs/bench/bench.json").read_text())
    assert [x["evaluation"]["episodes"] for x in saved["learned"]] == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + 15), (signal.SIGINT, 128 + 2), (signal.SIGKILL, -9)]
)
def test_a_process_that_is_ended_leaves_its_rows(
    own: str, tmp_path: Path, number: int, code: int
) -> None:
    run = [sys.executable, "-m", "fastmaml", "bench", f"{own}:slow", "--methods", "unrolled"]
    run += ["--sweep-steps", "1", "2", "100", "--repeats", "3", "--out", "found"]
    path = tmp_path / "found" / "bench.json"
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        until = time.monotonic() + 120
        while not path.exists() or len(json.loads(path.read_text())["cells"]) < 2:
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        child.send_signal(number)
        out, _ = child.communicate(timeout=60)
    assert child.returncode == code
    saved = json.loads(path.read_text())
    assert saved["interrupted"] is True
    assert [cell["steps"] for cell in saved["cells"]] == [1, 2]
    assert all(cell["peak_bytes"] and cell["turns_s"] for cell in saved["cells"])
    if number != signal.SIGKILL:
        assert "interrupted: what is missing was not measured" in out


@pytest.mark.slow
def test_what_is_shown_was_written_before(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(console: object, found: object) -> None:
        assert Path("runs/bench/bench.json").exists()
        raise UnicodeEncodeError("ascii", "–", 0, 1, "no such letter")

    monkeypatch.setattr("fastmaml.cli.bench._show", broken)
    with pytest.raises(UnicodeEncodeError):
        main(["bench", f"{own}:make", *QUICK, "--sweep-steps", "1"])
    assert json.loads(Path("runs/bench/bench.json").read_text())["interrupted"] is False


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_bad_input(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert main(["bench", f"{own}:make", *QUICK, "--out", "taken"]) == 2
    assert "--out taken is a file: give a folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "profile"])
@pytest.mark.parametrize(
    ("factory", "kind", "message"),
    [
        ("failing", OSError, "my file is missing"),
        ("bad_model", ValueError, "my model's own"),
        ("bad_arguments", ValueError, "steps=-1"),
    ],
)
def test_errors_of_one_s_own_code_keep_their_traceback(
    own: str, command: str, factory: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        main([command, f"{own}:{factory}"])
    assert not isinstance(caught.value, BadInputError)
    assert any("own_for_bench.py" in str(entry.path) for entry in caught.traceback)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "second-order"], "--methods second-order: choose from unrolled"),
        (["--methods", "unrolled:3"], "--methods unrolled:3"),
        (["--methods", "unrolled+offload"], "--methods unrolled+offload"),
        (["--methods", "mixed-mode:3+cpu"], "checkpointed and mixed-mode take +offload"),
        (["--budget", "much"], "'much' is no size"),
        (["--sweep-steps", "0"], "steps="),
        (["--accuracy", "3"], "needs vs="),
        (["--ways", "0"], "ways=0"),
        (["--vs", "first-order", "--methods", "first-order"], "none of them is exact"),
    ],
)
def test_bad_input_is_said_in_a_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DIGITS, *flags, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_a_factory_gives(own: str) -> None:
    made = load_factory(f"{own}:make")
    assert isinstance(made.maml, fm.MAML)
    assert isinstance(made.episodes, fm.Episodes)
    assert made.optimizer is made.test is None
    made = load_factory(f"{own}:with_optimizer")
    assert isinstance(made.episodes, list)
    assert isinstance(made.optimizer, torch.optim.SGD)
    made = load_factory(f"{own}:with_test")
    assert made.optimizer is None
    assert isinstance(made.test, fm.Episodes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":make", "names no function"),
        ("own_for_bench:", "names no function"),
        ("not_there_at_all:make", "no module not_there_at_all"),
        ("own_for_bench.part:make", "no module own_for_bench.part"),
        ("own_for_bench:missing", "has no missing"),
        ("own_for_bench:number", "has no function number"),
        ("own_for_bench:one", "returned a MAML"),
        ("own_for_bench:no_maml", "returned a Linear first"),
        ("own_for_bench:no_episodes", "returned a int as episodes"),
        ("own_for_bench:no_optimizer", "returned a str third"),
        ("own_for_bench:no_test", "returned a int as test"),
    ],
)
def test_what_a_factory_may_not_give(own: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_factory(name)


def test_a_factory_s_own_errors_come_through(own: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="my file is missing"):
        load_factory(f"{own}:failing")
    (tmp_path / "broken_for_bench.py").write_text("import surely_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        load_factory("broken_for_bench:make")


def test_names_of_functions_are_told_from_data_sets() -> None:
    assert is_factory("mine:make")
    assert not is_factory("digits")
