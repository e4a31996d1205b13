"""Checkpoints come back as they were, or say in one paragraph why they cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmaml import _files
from fastmaml.training import checkpoint
from fastmaml.training.checkpoint import Checkpoint

TIED = torch.randn(3, 2)
STATE = {
    "maml": {"module.weight": TIED, "module.tied": TIED, "module.view": torch.randn(4, 4).t()[1:]},
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2).double()}, 7: {}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0, 7]}],
    },
    "kinds": [torch.randn(2).bfloat16(), torch.tensor([True]), torch.zeros(0, 3), torch.arange(3)],
    "odd": [torch.tensor([float("nan"), float("inf")]), float("inf"), 2**62, True, "é", (), []],
    "clash": {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}},
}


def same(a: object, b: object) -> bool:
    """Equal in every value, type and dtype; NaN equals itself."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and torch.equal(
                a.nan_to_num(1.25) if a.is_floating_point() else a,
                b.nan_to_num(1.25) if a.is_floating_point() else b,
            )
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "last.safetensors"
    checkpoint.save(path, Checkpoint({"ways": 5, "out": "runs"}, 12, STATE))
    return path


def test_everything_comes_back(path: Path) -> None:
    found = checkpoint.load(path)
    assert found.config == {"ways": 5, "out": "runs"}
    assert found.iteration == 12
    assert same(found.state, STATE)
    assert os.listdir(path.parent) == [path.name]


def test_the_comparison_above_can_fail() -> None:
    assert not same({0: TIED}, {"0": TIED})
    assert not same([TIED], [TIED + 1])
    assert not same((1,), [1])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(_files.os, failing, fail)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, Checkpoint({}, 13, {}))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.99])
def test_a_file_that_was_cut_off(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match="is damaged or is no safetensors file"):
        checkpoint.load(path)


def test_any_flipped_byte_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for at in [*range(0, len(content), max(len(content) // 40, 1)), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"damaged|not a checkpoint"):
            checkpoint.load(path)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"model.safetensors is a safetensors file, but not"):
        checkpoint.load(path)


def test_a_file_of_a_newer_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    checkpoint.save(path, Checkpoint({}, 1, {}))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="newer fastmaml"):
        checkpoint.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none.safetensors"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_a_value_that_cannot_be_kept(tmp_path: Path) -> None:
    state = {"optimizer": {"param_groups": [{"hook": print}]}}
    with pytest.raises(ValueError, match=r"optimizer.param_groups.0.hook is a builtin"):
        checkpoint.save(tmp_path / "x.safetensors", Checkpoint({}, 0, state))
    assert not os.listdir(tmp_path)
