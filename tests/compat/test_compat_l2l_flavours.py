"""Lightning comes as two packages: the one that a script uses, a clear word where neither is."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from places import ROOT

OLD, NEW = "pytorch_lightning", "lightning.pytorch"


def stub(version: str) -> Any:
    module = ModuleType("stub")
    module.__version__ = version  # type: ignore[attr-defined]
    return module


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("lightning", reason="lightning is not installed")
    return importlib.import_module("fastmaml.compat.learn2learn._lightning")


def test_the_package_that_is_imported_is_taken(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = stub("2.6.6"), stub("2.5.0")
    for loaded, taken in (({OLD: old}, old), ({NEW: new}, new), ({OLD: old, NEW: new}, old)):
        for name in (OLD, NEW):
            monkeypatch.setitem(sys.modules, name, loaded.get(name))
        assert home.choose() == (taken, False)


def test_an_absent_or_old_package_says_what_to_install(
    home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (OLD, NEW):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(ImportError, match=r'need Lightning: pip install "fastmaml\[tools\]"'):
        home.choose()
    monkeypatch.setitem(sys.modules, OLD, stub("1.9.5"))
    with pytest.raises(ImportError, match=r"pytorch_lightning 1.9.5 is too old: pip install"):
        home.choose()


def test_a_package_that_is_imported_too_late(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "pl", ModuleType(OLD))
    monkeypatch.setattr(home, "guessed", True)
    monkeypatch.setitem(sys.modules, NEW, None)
    home.check_guess()
    monkeypatch.setitem(sys.modules, NEW, stub("2.6.6"))
    with pytest.raises(ImportError, match="Import the package of your Trainer first"):
        home.check_guess()
    monkeypatch.setattr(home, "guessed", False)
    home.check_guess()


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_learn2learn_does_not_import_lightning() -> None:
    code = (
        "import sys, fastmaml.compat.learn2learn as l2l; "
        "print([m for m in sys.modules if 'lightning' in m], hasattr(l2l.utils, 'accuracy'))"
    )
    assert run(code) == "[] True\n"


@pytest.mark.slow
def test_the_other_package_trains_and_tests() -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    code = """
import lightning as L
import torch
import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.utils.lightning import EpisodicBatcher

class Tasks:
    def sample(self):
        return torch.randn(10, 4), torch.arange(5).repeat_interleave(2)

module = l2l.algorithms.LightningMAML(torch.nn.Linear(4, 5))
assert isinstance(module, L.LightningModule)
trainer = L.Trainer(
    accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(module, EpisodicBatcher(Tasks(), epoch_length=2))
print(sorted(trainer.test(module, EpisodicBatcher(Tasks()), verbose=False)[0]))
"""
    assert run(code) == "['test_accuracy', 'test_loss']\n"
