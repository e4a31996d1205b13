"""``--to`` of ``fastmaml export`` and ``adapt``: no file is lost without a word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastmaml.cli import main
from fastmaml.cli.target import replacing, require_free

COMMANDS = (["export"], ["adapt", "--data", "rows.jsonl"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_with_files_is_refused_before_anything_is_loaded(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, run = tmp_path / "to", str(tmp_path / "no-run")
    to.mkdir()
    asked = [*command, run, "--to", str(to)]
    assert main(asked) == 2
    assert "there is no checkpoint" in capsys.readouterr().err, "an empty folder will do"
    (to / "mine.txt").touch()
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert f"--to {to} is a folder with files in it" in said
    assert "--overwrite" in said
    assert main([*asked, "--overwrite"]) == 2
    assert "no saved model that --overwrite could replace" in capsys.readouterr().err
    (to / "config.json").touch()
    (to / "model.safetensors").touch()
    assert main([*asked, "--overwrite"]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert main([*asked[:-1], str(to / "mine.txt"), "--overwrite"]) == 2
    assert "is a file: give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file/to", "file is a file. Give a folder."),
        ("link", "is a link to nothing"),
        ("closed/to", "closed cannot be written to"),
    ],
)
def test_where_nothing_can_be_written(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    (tmp_path / "closed").mkdir()
    # Root may write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed")
    with pytest.raises(ValueError, match=re.escape(said)):
        require_free(tmp_path / name, overwrite=True)
    require_free(tmp_path / "new" / "to", overwrite=False)


OWN = ("notes.txt", "README.md", "vocab.csv", "model_a.safetensors", "tokenizer.py")
MODEL = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")


def old_model(to: Path) -> None:
    (to / "tokenizers").mkdir(parents=True)
    for name in (*OWN, *MODEL, "tokenizers/mine.json"):
        (to / name).write_text("old")


def test_what_could_not_be_written_leaves_the_old_model(tmp_path: Path) -> None:
    to = tmp_path / "to"
    old_model(to)
    before = sorted(to.rglob("*"))
    with pytest.raises(ValueError, match="in between"):
        _write_and_fail(to)
    assert sorted(to.rglob("*")) == before
    assert all(path.read_text() == "old" for path in before if path.is_file())


def test_a_model_is_replaced_and_all_else_stays(tmp_path: Path) -> None:
    to = tmp_path / "to"
    old_model(to)
    with replacing(to) as folder:
        for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
            (folder / name).write_text("new")
        (folder / "tokenizers").mkdir()
        (folder / "tokenizers" / "new.json").touch()
    new = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in to.iterdir()} == {*OWN, "tokenizers", *new}
    assert {
        path.name for path in to.iterdir() if path.is_file() and path.read_text() == "new"
    } == new
    assert {path.name for path in (to / "tokenizers").iterdir()} == {"mine.json", "new.json"}
    with replacing(tmp_path / "fresh") as folder:
        assert folder == tmp_path / "fresh"


def _write_and_fail(to: Path) -> None:
    with replacing(to) as folder:
        (folder / "config.json").write_text("new")
        raise ValueError("in between")
