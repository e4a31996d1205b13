"""Imports go one way: cli -> trainer -> maml -> engine -> {gradients, rules}; leaves apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastmaml"

ALLOWED: dict[str, set[str]] = {
    # a layer: what it may import, apart from itself
    "files": set(),
    "ops": set(),
    "rules": {"ops"},
    "gradients": {"rules"},
    "episodes": {"files"},
    "models": {"episodes"},
    "profiling": {
        "engine",
        "environment",
        "episodes",
        "files",
        "gradients",
        "maml",
        "ops",
        "rules",
    },
    "losses": set(),
    "heads": set(),
    "integrations": set(),
    "engine": {"gradients", "rules", "episodes", "ops", "heads", "losses"},
    "learner": {"engine", "rules"},
    "per_task": {"arguments", "assembly", "engine", "episodes", "gradients", "maml", "output"},
    "output": {"engine", "losses"},
    "arguments": {"episodes", "gradients", "rules"},
    "given_later": set(),
    "assembly": {"arguments", "engine", "episodes", "gradients", "integrations", "rules"},
    "maml": {
        "arguments",
        "assembly",
        "engine",
        "episodes",
        "given_later",
        "gradients",
        "heads",
        "learner",
        "ops",
        "output",
        "per_task",
        "rules",
    },
    "compat": {"engine", "episodes", "files", "gradients", "maml", "models", "rules"},
    "sweeps": {
        "assembly",
        "engine",
        "environment",
        "episodes",
        "evaluation",
        "files",
        "gradients",
        "maml",
        "ops",
        "profiling",
    },
    "verification": {"engine", "episodes", "gradients", "maml", "rules"},
    "annealing": set(),
    "config": set(),
    "interrupts": set(),
    "environment": {"ops"},
    "evaluation": {"maml", "output", "episodes"},
    "checkpoint": {"config", "files", "environment"},
    "plots": {"evaluation", "files"},
    "reporting": {"config", "evaluation", "files", "plots", "environment"},
}
TOP = {"__init__", "__main__", "cli", "presets", "recipes", "trainer"}


def layer(module: str) -> str:
    return module.removeprefix("fastmaml").lstrip(".").split(".")[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastmaml"):
            own = layer(node.module or "")
            found |= {own} if own else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {layer(a.name) for a in node.names if a.name.startswith("fastmaml.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in TOP:
        return
    assert imports(path) - {own} <= ALLOWED[own]


def test_nothing_below_the_trainer_imports_it() -> None:
    for path in FILES:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own not in TOP:
            assert not imports(path) & TOP, path


def test_import_needs_torch_only() -> None:
    """No extra is imported, and none of torch's own heavy parts that torch itself leaves out."""
    code = (
        "import sys, torch; before = set(sys.modules); import fastmaml; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(' '.join(sorted(new - set(sys.stdlib_module_names))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert set(result.stdout.split()) <= {"fastmaml", "torch"}


def test_every_package_is_installed() -> None:
    """The list is explicit, because the folder kernels/ is a package of another name."""
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    listed = text.split("packages = [")[1].split("]")[0]
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")}
    names = {".".join(("fastmaml", *folder.relative_to(PACKAGE).parts)) for folder in folders}
    assert {name.strip(' ",') for name in listed.split()} == names | {"fastmaml.kernels"}
