"""What `make gpu` builds first: its environment, and only what has changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_parts import build
from benchmarks.gpu_parts.answer import Answer


def test_sources_that_are_the_same_keep_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "a.cpp", tmp_path / "b.cpp"]
    for path in files:
        path.write_text("int x;")
        os.utime(path, (1000, 1000))
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "sources", lambda: files)
    build.unchanged(tmp_path / "sources.json")
    files[1].write_text("int y;")
    for path in files:
        os.utime(path, (2000, 2000))  # the tree was sent again
    build.unchanged(tmp_path / "sources.json")
    assert [path.stat().st_mtime for path in files] == [1000, 2000]


@pytest.mark.slow
@pytest.mark.parametrize("installs", [True, False])
def test_an_environment_of_an_environment_sees_its_packages(
    installs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Python that is a virtual environment itself, as on many machines with a GPU."""
    answer = Answer("cuda", False, 60, tmp_path / "kept", tmp_path / "build.json")
    (tmp_path / "fastmaml").mkdir()
    monkeypatch.setattr(build, "ROOT", tmp_path)
    commands = []
    monkeypatch.setattr(build, "ENVIRONMENT", tmp_path / "own")
    monkeypatch.setattr(build, "PYTHON", tmp_path / "own" / "bin" / "python")
    real = build.run

    def run(command: list[Any], environment: Any = None) -> None:
        commands.append(command)
        if "pip" not in command:
            real(command, environment)
        elif not installs:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(build, "run", run)
    build.make_environment(answer)
    assert any("pip" in command for command in commands)
    found = build.said(build.PYTHON, "-c", "import torch, pytest; print(torch.__file__)")
    assert Path(found).exists()
    commands.clear()
    build.make_environment(answer)
    assert bool(commands) != installs, "it is there"
    if not installs:
        (tmp_path / "fastmaml" / "__init__.py").touch()
        said = build.said(build.PYTHON, "-c", "import fastmaml; print(fastmaml.__file__)")
        assert Path(said) == tmp_path / "fastmaml" / "__init__.py"
        assert (tmp_path / "fastmaml" / "kernels").readlink() == Path("../kernels/triton")
    assert bool(answer.failures) != installs
