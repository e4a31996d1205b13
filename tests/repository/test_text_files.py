"""Files end as they should, and what pages say lies in the tree lies there."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

PAGES = [
    *sorted(set(ROOT.glob("*.md")) - {ROOT / "CHANGELOG.md"}),  # which names what was there
    *sorted(ROOT.glob("docs/**/*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "csrc", "kernels")),
    *sorted((ROOT / ".github").rglob("*.*")),
    ROOT / "Makefile",
]
PATH = re.compile(
    r"(?<![\w./-])(?:benchmarks|csrc|docs|examples|fastmaml|kernels|tests)/[\w./*-]*\w(?![\w-]*[<{])"
)
MODULE = re.compile(r"python -m ((?:benchmarks|fastmaml|tests)\b[\w.]*)(?![\w.])")


@pytest.fixture(scope="module")
def checker() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci" / "text_files.py"))


def test_all_files_end_as_they_should(
    checker: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if subprocess.run(["git", "-C", str(ROOT), "status"], capture_output=True).returncode:
        pytest.skip("not a git repository")
    assert len(checker["tracked"]()) > 500
    assert checker["main"]([]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a \nb\n", "blanks"),
        (b"a\r\n", "blanks"),
        (b"a", "one newline"),
        (b"a\n\n", "one newline"),
        (b"a\n<<<<<<< here\n", "merge"),
        (b"a\n=======\nb\n", "merge"),
        (b"a" * (1 << 20) + b"\n", "more than"),
    ],
)
def test_faults_are_found_and_ends_are_mended(
    checker: dict[str, Any], content: bytes, fault: str
) -> None:
    (found,) = checker["faults"]("a file", content)
    assert fault in found
    left = list(checker["faults"]("a file", checker["mended"](content)))
    assert bool(left) == (fault in ("merge", "more than"))


def test_what_is_no_text_or_well_ended_is_left_alone(checker: dict[str, Any]) -> None:
    assert list(checker["faults"]("a figure", b"\x89PNG\r\n\0 \n\n")) == []
    for content in (b"", b"a\n", b"a\n\nb\n", b"title\n========\n"):
        assert list(checker["faults"]("a file", content)) == []
        assert checker["mended"](content) == content


def placeholder(path: str) -> bool:
    """Whether a part of it stands for a name, as DEVICE does, or is made by a run."""
    parts = [Path(part).stem for part in Path(path).parts]
    return any(part.isupper() for part in parts) or path.startswith("benchmarks/results/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_modules_that_pages_name_are_there(page: Path) -> None:
    text = page.read_text()
    for path in PATH.findall(text):
        assert placeholder(path) or any(ROOT.glob(path)), f"{page.name} names {path}"
    for module in MODULE.findall(text):
        assert importlib.util.find_spec(module), f"{page.name} names the module {module}"
