"""``--to`` of ``fastmaml export`` and ``adapt``: no file is lost without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmaml.cli import main
from fastmaml.cli.target import replacing

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
    assert "there is no checkpoint" in capsys.readouterr().err
    assert main([*asked[:-1], str(to / "mine.txt"), "--overwrite"]) == 2
    assert "is a file: give a folder" in capsys.readouterr().err


def test_what_could_not_be_written_leaves_the_old_model(tmp_path: Path) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "config.json").write_text("old")
    with pytest.raises(ValueError, match="in between"):
        _write_and_fail(to)
    assert (to / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [to]
    with replacing(to) as folder:
        (folder / "adapter_config.json").write_text("new")
    assert [path.name for path in to.iterdir()] == ["adapter_config.json"]
    with replacing(tmp_path / "fresh") as folder:
        assert folder == tmp_path / "fresh"


def _write_and_fail(to: Path) -> None:
    with replacing(to) as folder:
        (folder / "config.json").write_text("new")
        raise ValueError("in between")
