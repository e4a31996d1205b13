"""What a trainer writes to its folder, and takes from it, is of its own run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sinusoid_runs import lines, trainer

from fastmaml.cli import runs
from fastmaml.training import checkpoint
from fastmaml.training.callbacks import Callback
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.run_lock import NAME, RunFolderError
from fastmaml.training.trainer import MetaTrainer

WORSE = {"meta_lr": 1.0, "schedule": "constant", "clip": None, "evaluate_every": 2}
"""Steps so large that validations get worse."""

FEW = {"validation_episodes": 4, "test_episodes": 4}


def run(folder: Path, iterations: int = 6, **changes: Any) -> MetaTrainer:
    settings: dict[str, Any] = {"executor": "eager", "iterations": iterations}
    return trainer(folder, **{**WORSE, **FEW, **settings, **changes})


def ended(folder: Path) -> MetaTrainer:
    found = run(folder)
    found.fit()
    assert found.best.iteration < 6
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_saving_does_not_take_the_folder_of_another_run(tmp_path: Path) -> None:
    first = ended(tmp_path)
    ended(tmp_path)
    before = contents(tmp_path)
    for save in (first.save, lambda: first.save(tmp_path / "last.safetensors")):
        with pytest.raises(RunFolderError, match="another run has the folder now"):
            save()
    with pytest.raises(RunFolderError, match="another run has the folder now"):
        run(tmp_path).save()  # it never had it
    assert contents(tmp_path) == before
    first.save(tmp_path / "mine.safetensors")  # takes nothing from anybody


class Meanwhile(Callback):
    """Another trainer saves while this one trains."""

    def __init__(self, other: MetaTrainer) -> None:
        self.other, self.refused = other, 0

    def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        with pytest.raises(RunFolderError, match="is training into this folder"):
            self.other.save()
        self.refused += 1


def test_saving_while_another_run_trains_there(tmp_path: Path) -> None:
    first = run(tmp_path, iterations=2, meta_lr=0.001)
    first.fit()
    meanwhile = Meanwhile(first)
    second = run(tmp_path, callbacks=[meanwhile])
    second.fit()
    assert meanwhile.refused == 6
    saved = checkpoint.load(tmp_path / "best.safetensors")
    assert saved.config["meta_lr"] == 1.0
    assert all(torch.equal(x, saved.weights[n]) for n, x in second.maml.state_dict().items())


def test_saving_gives_the_folder_back(tmp_path: Path) -> None:
    alone = run(tmp_path / "new")
    for _ in range(2):
        alone.step()
        alone.save()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"last.safetensors"}
    again = run(tmp_path / "new")
    again.resume(tmp_path / "new" / "last.safetensors")
    again.fit()
    again.save()
    again.fit()
    assert not (tmp_path / "new" / NAME).exists()


@pytest.mark.parametrize("name", ["best", "mine", "last"])
def test_any_file_of_the_own_folder_is_resumed(tmp_path: Path, name: str) -> None:
    first = ended(tmp_path)
    first.save(tmp_path / f"{'last' if name == 'last' else 'mine'}.safetensors")
    first.fit()  # what it wrote itself is no other run's
    again = run(tmp_path, 8)
    again.resume(tmp_path / f"{name}.safetensors")
    again.fit()
    assert [line["iteration"] for line in lines(tmp_path)] == list(range(9))
    assert again.best.iteration == first.best.iteration
    assert not (tmp_path / "earlier-1").exists()


@pytest.mark.parametrize("way", ["absolute", "dots", "folder link", "file link"])
def test_a_folder_is_the_same_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first = ended(Path("run"))
    Path("link").symlink_to("run")
    Path("latest.safetensors").symlink_to("run/last.safetensors")
    path = {
        "absolute": tmp_path / "run" / "last.safetensors",
        "dots": Path("link", "..", "run", "last.safetensors"),
        "folder link": Path("link", "last.safetensors"),
        "file link": Path("latest.safetensors"),
    }[way]
    again = run(Path("run"), 8)
    again.resume(path)
    again.fit()
    assert again.best.iteration == first.best.iteration
    assert [line["iteration"] for line in lines(Path("run"))] == list(range(9))
    assert not Path("run", "earlier-1").exists()


def test_a_checkpoint_that_an_earlier_run_left_begins_anew(tmp_path: Path) -> None:
    """The folder is another run's by now, whose files are moved as for any other run."""
    first = run(tmp_path, 4)
    first.fit()
    first.best.seen(first.iteration, -1.0, lower_is_better=True)  # the file is its own best one
    first.save(tmp_path / "mine.safetensors")
    second = ended(tmp_path)
    again = run(tmp_path, 8)
    again.resume(tmp_path / "mine.safetensors")
    again.fit()
    moved = checkpoint.load(tmp_path / "earlier-2" / "last.safetensors")
    assert moved.run == second._own.run != again._own.run == first._own.run
    assert checkpoint.load(tmp_path / "best.safetensors").run == first._own.run
    assert [line["iteration"] for line in lines(tmp_path)] == [5, 6, 7, 8]


def test_weights_of_another_run_are_not_tested(tmp_path: Path) -> None:
    first, other = ended(tmp_path / "first"), ended(tmp_path / "other")
    assert first.best.iteration == other.best.iteration, "else nothing is shown"
    own, foreign = (one.folder / "best.safetensors" for one in (first, other))
    before = own.read_bytes()
    own.write_bytes(foreign.read_bytes())
    with pytest.raises(RunFolderError, match=r"best\.safetensors is of another run"):
        first.fit()
    with pytest.raises(ValueError, match="is not of that one"):
        run(tmp_path / "first").resume(tmp_path / "first" / "last.safetensors")
    with pytest.raises(RunFolderError, match="of another run"):
        runs.tested_in(tmp_path / "first")
    own.write_bytes((tmp_path / "first" / "last.safetensors").read_bytes())
    with pytest.raises(RunFolderError, match="is of iteration 6"):
        first.fit()
    assert not (tmp_path / "first" / NAME).exists()
    own.write_bytes(before)
    first.fit()
    assert runs.tested_in(tmp_path / "first") == own


def test_files_that_name_no_run_are_resumed(tmp_path: Path) -> None:
    """As those that were written before checkpoints did."""
    first = ended(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        old = checkpoint.load(path)
        checkpoint.save(path, checkpoint.Checkpoint(old.config, old.iteration, old.state))
        assert checkpoint.run_of(path) is None
    again = run(tmp_path, 8)
    again.resume(tmp_path / "last.safetensors")
    again.fit()
    once_more = run(tmp_path, 8)
    once_more.resume(tmp_path / "best.safetensors")  # the last one names its run by now
    once_more.fit()
    assert again._own.run == once_more._own.run
    assert json.loads((tmp_path / "result.json").read_text())["tested"]["iteration"] == (
        first.best.iteration
    )
    (tmp_path / "last.safetensors").write_bytes(b"damaged")
    assert checkpoint.run_of(tmp_path / "last.safetensors") is None
    assert checkpoint.run_of(tmp_path / "nothing") is None
