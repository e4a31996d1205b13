"""A run's folder: one run at a time, nothing of somebody else's, and nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from sinusoid_runs import trainer

import fastmaml as fm
from fastmaml import _files
from fastmaml._files import remove_leftovers, require_folder, write_whole
from fastmaml.training import run_lock
from fastmaml.training.run_folder import RunReport
from fastmaml.training.run_lock import NAME, RunFolderError, RunLock

HOLDS = (
    "import sys; from pathlib import Path; from fastmaml.training.run_lock import RunLock; "
    "lock = RunLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
)


def holding(folder: Path) -> subprocess.Popen[str]:
    """Another process that trains into that folder."""
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert held.stdout is not None
    assert held.stdout.readline() == "locked\n"
    return held


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    held = holding(tmp_path)
    try:
        with pytest.raises(RunFolderError, match=rf"process {held.pid} on .* is training into"):
            trainer(tmp_path).fit()
        assert names(tmp_path) == {NAME}, "nothing was touched"
    finally:
        held.send_signal(signal.SIGKILL)
        held.communicate()
    assert names(tmp_path) == {NAME}
    trainer(tmp_path, iterations=2).fit()
    assert names(tmp_path) == {
        "best.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "result.json",
    }


def test_a_second_run_of_the_same_process_is_refused(tmp_path: Path) -> None:
    with RunReport(tmp_path, None, plots=False, screen=False) as first:
        with pytest.raises(RunFolderError, match=f"process {os.getpid()} on"):
            RunReport(tmp_path, None, plots=False, screen=False)
        first.line({"iteration": 1})
    with RunReport(tmp_path, 1, plots=False, screen=False) as second:
        assert [line["iteration"] for line in second.lines] == [1]


def test_the_lock_is_free_after_a_failed_start(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("somebody else's\n")
    for _ in range(2):
        with pytest.raises(RunFolderError, match=r"has metrics\.jsonl, which a run would write"):
            RunReport(tmp_path, None, plots=False, screen=False)
    assert names(tmp_path) == {"metrics.jsonl"}


@pytest.mark.parametrize(
    ("name", "content", "own"),
    [
        ("last.safetensors", b"not one", False),
        ("last.safetensors", b"\x02" + bytes(7) + b"{}", False),
        ("last.safetensors", b"\xff" * 20, False),
        ("result.json", b"[]", False),
        ("result.json", b'{"config": {}}', True),
        ("metrics.jsonl", b"7\n", False),
        ("metrics.jsonl", b"", True),
        ("curves.png", b"a picture", True),
        ("notes.txt", b"of another program", True),
    ],
)
def test_files_of_others_are_not_moved(
    tmp_path: Path, name: str, content: bytes, own: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    if own:
        with RunReport(tmp_path, None, plots=False, screen=False):
            pass
        moved = tmp_path / ("." if name == "notes.txt" else "earlier-1") / name
        assert moved.read_bytes() == content
    else:
        with pytest.raises(RunFolderError, match=f"has {name}"):
            RunReport(tmp_path, None, plots=False, screen=False)
        assert (tmp_path / name).read_bytes() == content


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*given: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with RunReport(tmp_path, None, plots=False):
        assert names(tmp_path) == {"metrics.jsonl"}
    assert "cannot be locked (No locks available)" in capsys.readouterr().out
    monkeypatch.setattr("fcntl.flock", lambda *given: (_ for _ in ()).throw(OSError(errno.EIO, "")))
    with pytest.raises(OSError, match=f"Errno {errno.EIO}"):
        RunLock(tmp_path)


def test_a_lock_whose_file_was_removed_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another run ends between opening the file and locking it."""
    real, calls = run_lock._is_at, []

    def removed_once(path: Path, descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        return real(path, descriptor)

    monkeypatch.setattr(run_lock, "_is_at", removed_once)
    lock = RunLock(tmp_path)
    assert len(calls) == 2
    with pytest.raises(RunFolderError):
        RunLock(tmp_path)
    lock.release()
    lock.release()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "last.safetensors"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match=r"last\.safetensors") as raised:
        write_whole(path, b"new")
    assert raised.value.errno == code
    assert names(tmp_path) == {"last.safetensors"}
    assert path.read_bytes() == b"old"


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path, host = tmp_path / "a.bin", _files._host()
    left = tmp_path / f".a.bin.{host}-{dead.pid}.tmp"
    kept = {f".a.bin.{host}-{os.getppid()}.tmp", ".a.bin.elsewhere-1.tmp", ".b.bin.x-1.tmp"}
    for name in (left.name, *kept):
        (tmp_path / name).touch()
    write_whole(path, b"content")
    assert names(tmp_path) == {"a.bin"} | kept
    remove_leftovers(path, of_all=True)
    assert names(tmp_path) == {"a.bin", ".b.bin.x-1.tmp"}


def test_a_run_starts_without_leftovers(tmp_path: Path) -> None:
    (tmp_path / ".last.safetensors.elsewhere-1.tmp").touch()
    with RunReport(tmp_path, None, plots=False, screen=False):
        assert names(tmp_path) == {NAME, "metrics.jsonl"}


def test_what_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    require_folder(tmp_path / "a" / "b", "out=b")
    for name, said in {
        "file": "^--out x is a file: give a folder",
        "file/below": "^--out x cannot be: .*file is a file",
        "link": "link to nothing",
    }.items():
        with pytest.raises(ValueError, match=said):
            require_folder(tmp_path / name, "--out x")
    monkeypatch.setattr(_files.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"^--out x: {tmp_path} cannot be written to"):
        require_folder(tmp_path / "a", "--out x")


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    """The metrics' last line fails, and so does closing the file."""
    report = RunReport(tmp_path, None, plots=False, screen=False)
    report._metrics.close()
    report._metrics = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    report.line({"iteration": 1})
    with pytest.raises(OSError, match="No space") as raised, report:
        report._metrics.flush()
    assert raised.value.__context__ is None
    with RunReport(tmp_path, None, plots=False, screen=False):
        pass


def test_a_folder_that_another_run_has_by_now(tmp_path: Path) -> None:
    """Else the first would test the second's best weights."""
    first, second = trainer(tmp_path, iterations=2), trainer(tmp_path, iterations=2)
    first.fit()
    first.fit()  # goes on in its own
    second.fit()
    with pytest.raises(RunFolderError, match="another run has the folder now"):
        first.fit()


def test_validation_is_no_training(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    with pytest.raises(ValueError, match="validation is the same object as train"):
        fm.MetaTrainer(one.maml, one.train, validation=one.train)
