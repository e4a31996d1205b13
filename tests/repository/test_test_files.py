"""How the tests lie: what they share is in tests/support, and nowhere twice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from places import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The modules that it imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_test_file_is_imported() -> None:
    names = {path.stem for path in TESTS if path.stem.startswith("test_")}
    assert len(names) > 100
    used = {(p.name, m) for p in TESTS for m in imported(p) if m.split(".")[-1] in names}
    assert used == set()


def test_no_two_files_have_one_name() -> None:
    """They lie in folders that are no packages, so that each name is a module."""
    names = [path.stem for path in TESTS if path.stem.startswith("test_")]
    assert len(names) == len(set(names))


def test_one_module_knows_where_the_project_is() -> None:
    told = {
        path.relative_to(ROOT / "tests").as_posix()
        for path in TESTS
        if path != Path(__file__) and "Path(__file__).parents[" in path.read_text()
    }
    assert told == {"support/places.py", "properties/run.py"}, "the latter begins without a path"
