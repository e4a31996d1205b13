"""The native module's build: where it looks for torch, and what it leaves where it fails."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools
from places import ROOT
from setuptools.errors import CompileError

import fastmaml
from fastmaml import ops
from fastmaml.cli import main
from fastmaml.ops import _load, _not_built

PACKAGE = Path(fastmaml.__file__).parent


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, which builds nothing."""
    monkeypatch.setattr(setuptools, "setup", lambda **settings: None)
    monkeypatch.setenv("FASTMAML_BUILD", "auto")
    monkeypatch.setenv("FASTMAML_CUDA", "0")
    monkeypatch.chdir(ROOT)
    return runpy.run_path("setup.py")


def package(folder: Path, name: str, version: str = "") -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    (folder / name / "version.py").write_text(f"__version__ = '{version}'\n")


def test_an_isolated_build_looks_where_it_is_installed_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: dict[str, Any]
) -> None:
    with pytest.raises(CompileError, match="hidden_package was not there when fastmaml was inst"):
        build["folder_of"]("hidden_package")
    package(tmp_path, "hidden_package")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert build["folder_of"]("hidden_package") == tmp_path / "hidden_package"


@pytest.mark.parametrize(
    ("version", "new"), [("2.10.1", False), ("2.11.0+cpu", True), ("?", False)]
)
def test_an_older_torch_is_named(
    tmp_path: Path, build: dict[str, Any], version: str, new: bool
) -> None:
    package(tmp_path, "torch", version)
    build["torch_folder"].__globals__["folder_of"] = lambda name: tmp_path / name
    if new:
        assert build["torch_folder"]() == tmp_path / "torch"
    else:
        with pytest.raises(CompileError, match=r"torch in .*torch was older than 2\.11"):
            build["torch_folder"]()


def test_what_was_not_built_leaves_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: dict[str, Any]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -std=x")
    command = build["Build"](setuptools.Distribution())
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    extension = setuptools.Extension("fastmaml._C", sources=[], optional=True)
    command.build_extension(extension)
    (left,) = (tmp_path / "lib" / "fastmaml").iterdir()
    assert left.name == _not_built.REASON.name
    assert left.read_text().startswith("there was no C++ compiler no-such-compiler -std=x")
    extension.optional = False  # FASTMAML_BUILD=1
    with pytest.raises(CompileError, match="no C\\+\\+ compiler"):
        command.build_extension(extension)
    assert list(left.parent.iterdir()) == []


class Installed:
    """What importlib.metadata tells of an installation of this package."""

    version = "1.2"

    def __init__(self, origin: Any, installer: str, place: Path) -> None:
        texts = {"direct_url.json": origin and json.dumps(origin), "INSTALLER": f"{installer}\n"}
        self.read_text, self.place = texts.get, place

    def locate_file(self, name: str) -> Path:
        return self.place / name


FOLDER: dict[str, Any] = {"url": "file:///a%20b/fastmaml", "dir_info": {}}
COMMIT = {"vcs": "git", "commit_id": "abc"}
PIP = "FASTMAML_BUILD=1 PYTHON -m pip install --force-reinstall --no-deps"


@pytest.mark.parametrize(
    ("origin", "installer", "said"),
    [
        (FOLDER, "pip", f"{PIP} '/a b/fastmaml'"),
        (None, "pip", f"{PIP} --no-binary fastmaml --no-cache-dir fastmaml==1.2"),
        ({"url": "https://a.b/c", "vcs_info": COMMIT}, "pip", f"{PIP} git+https://a.b/c@abc"),
        ({"url": "file:///x/f.tar.gz", "archive_info": {}}, "pip", f"{PIP} file:///x/f.tar.gz"),
        ({"url": "file:///x/f.whl", "archive_info": {}}, "pip", f"{PIP} FOLDER_OF_ITS_SOURCE"),
        (
            FOLDER,
            "uv",
            "uv pip install --python PYTHON setuptools ninja pybind11 && FASTMAML_BUILD=1 uv pip "
            "install --python PYTHON --no-build-isolation --reinstall --no-deps '/a b/fastmaml'",
        ),
    ],
)
def test_the_command_is_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: Any, installer: str, said: str
) -> None:
    (tmp_path / "fastmaml").mkdir()
    monkeypatch.setattr(_not_built, "PACKAGE", tmp_path / "fastmaml")
    found = Installed(origin, installer, tmp_path)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: found)
    assert _not_built.command() == said.replace("PYTHON", shlex.quote(sys.executable))


def test_of_a_tree_it_builds_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another fastmaml is installed; an editable one is installed again."""
    root = PACKAGE.parent
    if not (root / "setup.py").exists():
        pytest.skip("fastmaml is installed")
    in_place = f"cd {root} && FASTMAML_BUILD=1 {sys.executable} setup.py build_ext --inplace"
    for origin, place in ((FOLDER, Path("/elsewhere")), (None, root)):
        found = Installed(origin, "pip", place)
        monkeypatch.setattr("importlib.metadata.distribution", lambda name, found=found: found)
        assert _not_built.command() == in_place
    editable = {"url": root.as_uri(), "dir_info": {"editable": True}}
    found = Installed(editable, "pip", Path("/elsewhere"))
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: found)
    assert _not_built.command().endswith(f"--no-deps -e {root}")


def test_info_ends_in_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = tmp_path / "_not_built.txt"
    reason.write_text("torch was not there when fastmaml was installed.\n")
    monkeypatch.setattr(_not_built, "REASON", reason)
    why = f"the native module fastmaml._C was not built{_not_built.why()}"
    monkeypatch.setattr(_load, "_found", lambda name: why)
    assert "not built (torch was not there when" in ops.status()["cpp"]
    with pytest.raises(ValueError, match=r"backend='cpp': .* to build it: .*FASTMAML_BUILD=1 "):
        _load.kernels("cpp")
    assert main(["info"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert last == f"To build it: {_not_built.command()}"
    assert "FASTMAML_BUILD" not in "".join(table)
