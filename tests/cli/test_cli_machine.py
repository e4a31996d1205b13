"""The command line where the machine lacks something: one line, an exit code, and how to go on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from fastmaml.cli import main
from fastmaml.training import checkpoint
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.run_lock import RunLock

SMALL = [
    *("--filters", "4", "--tasks", "2", "--evaluate-every", "0", "--test-episodes", "2"),
    *("--iterations", "2", "--checkpoint-every", "1", "--threads", "1", "--no-plots"),
]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--filters", "1000000000"], 2, "out of memory (RuntimeError: "),
        (["--tasks", "1000000000000"], 1, "out of memory (RuntimeError: "),
        (["--out", "FILE"], 2, "FILE is a file: give a folder."),
        (["--out", "FILE/below"], 2, "FILE is a file. Give a folder."),
        (["--config", "."], 2, "--config . is a folder: give a TOML file."),
        (["--config", "FILE"], 2, "FILE is not a TOML file: "),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, said: str
) -> None:
    file = tmp_path / "file"
    file.write_text("no TOML")
    flags = [flag.replace("FILE", str(file)) for flag in flags]
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *SMALL, *flags]) == code
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fastmaml: ")]
    assert said.replace("FILE", str(file)) in line
    assert len(line) < 600


@pytest.mark.parametrize("command", [["profile"], ["bench", "--sweep-steps", "1"]])
def test_measuring_looks_at_its_folder_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main([command[0], "digits", *command[1:], "--out", str(file)]) == 2
    assert capsys.readouterr().err == f"fastmaml: --out {file} is a file: give a folder.\n"


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = RunLock(tmp_path)
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL]) == 2
    said = capsys.readouterr().err
    assert f"process {os.getpid()} on " in said
    assert "give another folder" in said
    lock.release()


def test_a_disk_that_fills_up_says_how_to_go_on(tmp_path: Path) -> None:
    """By a limit on the size of files, under which the second checkpoint does not fit."""
    out, flags = tmp_path / "run", ["train", "digits", "--out", "run", *SMALL]
    code = (
        "import resource, sys; from fastmaml.cli import main; "
        "from fastmaml.training import outer_loop as o; save = o.OuterLoop.save\n"
        "def limited(self):\n"
        "    if self.iteration == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "    save(self)\n"
        "o.OuterLoop.save = limited; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("fastmaml: [")]
    assert f"[Errno {errno.EFBIG}] File too large: 'run/last.safetensors'." in line
    assert "Iteration 1 was saved" in line
    again = line.split("go on with: fastmaml ")[1].split()
    assert again == ["train", "digits", "--resume", "run"]
    assert {path.name for path in out.iterdir()} == {"last.safetensors", "metrics.jsonl"}
    assert checkpoint.load(out / "last.safetensors").iteration == 1
    assert main([*again[:-1], str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["iterations"] == 2


def test_nothing_saved_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: OuterLoop) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(OuterLoop, "fit", fails)
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL]) == 1
    said = capsys.readouterr().err
    assert "No space left on device: 'x'. Nothing was saved: start again" in said
    monkeypatch.setattr(OuterLoop, "fit", lambda self: (_ for _ in ()).throw(RuntimeError("ours")))
    with pytest.raises(RuntimeError, match="ours"):
        main(["train", "digits", "--out", str(tmp_path), *SMALL])
