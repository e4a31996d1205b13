"""``fastmaml profile``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastmaml.cli import main

FACTORIES = """
import torch
import fastmaml as fm
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)

def parts():
    maml = fm.MAML(nn.Linear(3, 4), lr=0.1, loss=F.cross_entropy)
    batch = fm.Batch(torch.randn(4, 5, 3), torch.randint(4, (4, 5)))
    return maml, fm.Episodes(batch, batch)

def make():
    return parts()

def with_optimizer():
    maml, episodes = parts()
    return maml, [episodes] * 50, torch.optim.SGD(maml.parameters(), 0.1)

def short():
    return parts()[:1]

def not_a_maml():
    return nn.Linear(3, 4), parts()[1]

def empty():
    return parts()[0], []

def broken():
    raise KeyError("mine")

def stopping():
    def loss(output, target):
        raise KeyboardInterrupt
    maml, episodes = parts()
    return fm.MAML(maml.module, lr=0.1, loss=loss), episodes

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, under a name that no other test has."""
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.slow
def test_a_data_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "out"
    small = ["--tasks", "4", "--filters", "8", "--threads", "1"]
    assert main(["profile", "digits", "--repeats", "2", "--out", str(out), *small]) == 0
    text = " ".join(capfd.readouterr().out.split())
    for wanted in ("digits, 5-way 5-shot", "sampling", "optimizer", "profiling on costs"):
        assert wanted in text
    found = json.loads((out / "profile.json").read_text())
    assert found["setting"]["tasks"] == 4
    assert found["setting"]["repeats"] == 2
    assert all(p["seconds"] > 0 for p in found["phases"] if p["name"] in ("sampling", "optimizer"))


@pytest.mark.slow
def test_flags_and_a_file_of_flags(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    file = tmp_path / "mine.toml"
    file.write_text('dataset = "digits"\ntasks = 3\nfilters = 8\ninner_steps = 3\nthreads = 1\n')
    flags = ["--config", str(file), "--inner-steps", "1", "--gradient", "first-order", "--trace"]
    out = tmp_path / "out"
    assert main(["profile", "digits", "--repeats", "1", "--out", str(out), *flags]) == 0
    setting = json.loads((out / "profile.json").read_text())["setting"]
    assert (setting["tasks"], setting["steps"]) == (3, 1)
    assert setting["gradient"] == "FirstOrder()"
    assert (out / "trace.json").exists()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("factory", ["make", "with_optimizer"])
def test_a_factory(mine: str, factory: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", f"{mine}:{factory}", "--repeats", "1"]) == 0
    assert f"{mine}:{factory}" in capfd.readouterr().out
    found = json.loads(Path("runs/profile/profile.json").read_text())
    cells = {p["name"]: p["seconds"] for p in found["phases"]}
    assert isinstance(cells["optimizer"], str) is (factory == "make")
    assert isinstance(cells["sampling"], str) is (factory == "make")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("short", "returned a tuple of 1: return (maml, episodes)"),
        ("not_a_maml", "has to be a fastmaml.MAML"),
        ("empty", "gave nothing more after 0 meta-batches"),
        ("number", "has no function number"),
        ("nothing", "has no nothing"),
    ],
)
def test_a_factory_that_does_not_fit(
    mine: str, factory: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", f"{mine}:{factory}"]) == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not Path("runs").exists()


def test_what_a_factory_raises_comes_through(mine: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        main(["profile", f"{mine}:broken"])


def test_ctrl_c_is_said_in_a_line(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", f"{mine}:stopping"]) == 130
    assert "Interrupted: nothing was written." in capfd.readouterr().err
    assert not Path("runs").exists()


def test_no_such_module(mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "no_such_module_at_all:make"]) == 2
    assert "there is no module no_such_module_at_all" in capfd.readouterr().err


def test_bad_flags(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    flags = ["--repeats", "0", "--threads", "1", "--out", str(tmp_path)]
    assert main(["profile", "digits", *flags]) == 2
    assert "repeats=0: give how many steps to time" in capfd.readouterr().err
