"""Tests in processes of pytest: ours beside the peers, and the peers' own under both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.support.origin import ROOT

PATIENCE = 3600
"""Seconds that a run of pytest may take."""

SEEDED = """
import random

import numpy
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)
"""
"""Before each of the peers' tests, so that both runs draw the same: some pass by chance alone."""

THROUGH = ("-m", "fastmaml.compat")
"""Before ``-m pytest``: every import of a peer reaches the drop-in, the tests' own included."""


def pytest(arguments: list[str], at: Path, before: tuple[str, ...] = ()) -> dict[str, str]:
    """Outcomes by test: "passed", "failed" (errors too), or "skipped: REASON".

    Args:
        arguments: what to run, and how.
        at: the working directory.
        before: what Python is given before ``-m pytest``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [
            sys.executable,
            "-W",
            "ignore",
            *before,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
        ]
        run = subprocess.run(
            [*command, f"--junit-xml={report}", *arguments],
            cwd=at,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": scratch},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        found = outcomes(report.read_text()) if report.exists() else {}
    if not found:
        raise RuntimeError(f"pytest ran nothing of {arguments} in {at}:\n{run.stdout[-2000:]}")
    return found


def outcomes(report: str) -> dict[str, str]:
    """Of a JUnit file."""
    found = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        kinds = {part.tag: part.get("message", "") for part in case}
        name = f"{case.get('classname')}::{case.get('name')}"
        if "failure" in kinds or "error" in kinds:
            found[name] = "failed"
        elif "skipped" in kinds:
            found[name] = f"skipped: {kinds['skipped']}"
        else:
            found[name] = "passed"
    return found


def ours() -> dict[str, str]:
    """The tests that compare `fastmaml.compat` with the peers, all of their rows."""
    files = sorted(str(path) for path in ROOT.glob("tests/compat/test_*peer*.py"))
    return pytest(["--all", *files], ROOT)


def find(*folders: Path | None) -> dict[str, Path]:
    """The peers' own tests, learn2learn*/tests and higher*/tests, by peer; a later folder wins."""
    found = {}
    for folder in folders:
        for peer in ("learn2learn", "higher"):
            for tests in sorted(folder.glob(f"{peer}*/tests")) if folder else ():
                found[peer] = tests
    return found


def both(tests: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A peer's tests under the peer itself and under the drop-in, from a copy of their folder."""
    runs = []
    for before in ((), THROUGH):
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(tests, Path(scratch) / "tests")
            (Path(scratch) / "conftest.py").write_text(SEEDED)
            files = "python_files=*_test.py test_*.py"
            options = ["--continue-on-collection-errors", "-o", files, "--rootdir=."]
            runs.append(pytest([*options, "-q", "tests"], Path(scratch), before))
    return runs[0], runs[1]


def counted(found: dict[str, str]) -> dict[str, int]:
    """How many passed, failed and were skipped."""
    kinds = [outcome.partition(":")[0] for outcome in found.values()]
    return {kind: kinds.count(kind) for kind in ("passed", "failed", "skipped")}


def lost(theirs: dict[str, str], here: dict[str, str]) -> list[str]:
    """What passes under the peer itself, and not under the drop-in."""
    return [n for n, outcome in theirs.items() if outcome == "passed" != here.get(n)]
