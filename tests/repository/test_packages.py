"""What is installed: every package is found, and the folder `kernels` stands in nobody's way."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools
from places import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TRITON = ROOT / "kernels" / "triton"
LINK = ROOT / "fastmaml" / "kernels"  # to TRITON, where a tree is used that is not installed


def files_of_the_package(pattern: str) -> set[Path]:
    """Relative to the root; none that was compiled or lies behind the link."""
    found = (path for path in (ROOT / "fastmaml").rglob(pattern) if path.is_file())
    return {
        path.relative_to(ROOT)
        for path in found
        if "__pycache__" not in path.parts and LINK not in path.parents and path.suffix != ".so"
    }


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py tells setuptools, which builds nothing."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: told.update(settings))
    monkeypatch.setenv("FASTMAML_BUILD", "0")
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return told


def test_every_folder_with_code_is_a_package_that_is_found(given: dict[str, Any]) -> None:
    packages: list[str] = given["packages"]
    assert len(set(packages)) == len(packages)
    folders = {path.parent for path in files_of_the_package("*.py")}
    assert {Path(*name.split(".")) for name in packages} == folders | {Path("fastmaml/kernels")}
    assert given["package_dir"] == {"fastmaml.kernels": "kernels/triton"}
    for folder in (*folders, TRITON.relative_to(ROOT)):
        assert (ROOT / folder / "__init__.py").exists(), folder
    assert given["ext_modules"] == [], "FASTMAML_BUILD=0 builds nothing"


def test_every_file_that_is_not_code_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
    ]
    others = files_of_the_package("*") - files_of_the_package("*.py")
    missed = [
        str(path) for path in others if not any(fnmatch.fnmatch(str(path), p) for p in patterns)
    ]
    assert missed == []
    for pattern in patterns:
        assert any(fnmatch.fnmatch(str(path), pattern) for path in others), pattern


@pytest.mark.slow
def test_a_wheel_made_from_the_source_distribution_has_all(tmp_path: Path) -> None:
    listed = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(listed, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git repository")
    tree = tmp_path / "tree"
    for name in filter(None, names.stdout.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    settings = os.environ | {"FASTMAML_BUILD": "0"}

    def run(*command: str, place: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command], cwd=place, env=settings,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    run("setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path), place=tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        members = [member for member in opened.getmembers() if member.isfile()]
        inside = {str(Path(*Path(member.name).parts[1:])) for member in members}
        for member in members:
            target = tmp_path / "unpacked" / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = opened.extractfile(member)
            assert content is not None
            target.write_bytes(content.read())
    code = {str(path) for path in files_of_the_package("*")}
    kernels = {path.name for path in TRITON.glob("*.py")}
    native = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    assert code <= inside
    assert {f"kernels/triton/{name}" for name in kernels} <= inside
    assert {str(path.relative_to(ROOT)) for path in native} <= inside

    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run("setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(tmp_path), place=unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened_wheel:
        installed = {n for n in opened_wheel.namelist() if not n.split("/")[0].endswith("-info")}
    assert installed == code | {f"fastmaml/kernels/{name}" for name in kernels}


def test_an_installed_package_called_kernels_wins(tmp_path: Path) -> None:
    """Though the tree comes before it on the path, as under ``python -m pytest`` at the root."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("name = 'another'")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", "import kernels; print(kernels.name)"], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "another"


def test_transformers_does_not_take_the_folder_for_that_package() -> None:
    """In this process, where the root is on the path."""
    import_utils = pytest.importorskip("transformers.utils.import_utils")
    installed = any(d.name == "kernels" for d in importlib.metadata.distributions())
    assert str(ROOT) in [str(Path(place or ".").resolve()) for place in sys.path]
    if not installed:
        assert not import_utils.is_kernels_available()


def is_a_kernel(function: ast.FunctionDef) -> bool:
    """Whether Triton compiles it: its arguments are no values of Python."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", sorted(TRITON.glob("*.py")), ids=lambda path: path.stem)
def test_what_triton_does_not_compile_has_types(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef) or is_a_kernel(node):
            continue
        assert node.returns is not None, f"{node.name} does not say what it returns"
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        untyped = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
        assert not untyped, f"{node.name}: {untyped}"
