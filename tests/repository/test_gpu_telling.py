"""How the GPU's run tells of each test as it ends, and in time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from places import ROOT, SUPPORT

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.junit import junit
from benchmarks.gpu_parts.tests import collect

SETTINGS = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, SUPPORT)))}

TESTS = """
import time
import pytest

@pytest.mark.parametrize("i", range(3))
def test_good(i):
    assert i < 3

def test_bad():
    assert 1 == 2

def test_skipped():
    pytest.skip("not here")

@pytest.fixture
def broken():
    raise ValueError("no fixture")

def test_error(broken): ...

def test_cuda():
    from benchmarks.gpu_parts import health
    health.broken = lambda device: True
    raise RuntimeError("CUDA error: device-side assert triggered")

@pytest.mark.parametrize("i", range(4))
def test_after(i): ...
"""
BROKEN = "raise ImportError('a name that is not there')"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("many", [False, True], ids=["one process", "xdist"])
def test_outcomes_are_told_as_they_come(tmp_path: Path, many: bool) -> None:
    if many:
        pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text(BROKEN)
    told = tmp_path / "told.jsonl"
    run = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_parts.telling"]
    run += ["-p", "no:cacheprovider"]
    run += ["-n", "1", "--max-worker-restart", "5"] if many else ["-p", "no:xdist"]
    settings = SETTINGS | {"FASTMAML_TOLD": str(told), "FASTMAML_TOLD_UNTIL": "60"}
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")}
    done = subprocess.run(
        [*run, "--continue-on-collection-errors", "test_some.py", "test_broken.py"], cwd=tmp_path,
        env=inherited | settings, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    answer = Answer("cuda", False, 60, tmp_path, tmp_path / "tests.json")
    collect(answer, [*told.read_text().splitlines(), '{"name": "cut'], done.returncode)
    counts = answer.found["counts"]
    # A worker whose CUDA is unusable ends, and xdist calls the test that it was in a crash.
    assert counts["passed"] == 7
    assert counts["skipped"] == 1
    assert counts["failed"] + counts["error"] in (4, 5)
    assert any("device-side assert" in why for why in answer.failures)
    assert sum("a name that is not there" in why for why in answer.failures) == 1
    assert answer.found["selected"] == 11


def test_tests_end_in_time(tmp_path: Path) -> None:
    slow = "import time, pytest\n@pytest.mark.parametrize('i', range(50))\n"
    slow += "def test_slow(i):\n    time.sleep(0.2)\n"
    (tmp_path / "test_some.py").write_text(slow)
    told = tmp_path / "told.jsonl"
    settings = SETTINGS | {"FASTMAML_TOLD": str(told), "FASTMAML_TOLD_UNTIL": "1"}
    settings["PYTEST_XDIST_WORKER"] = "gw1"  # of the process that began it, which may be a worker
    run = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_parts.telling"]
    run += ["-p", "no:cacheprovider"]
    done = subprocess.run(
        [*run, "-p", "no:xdist", "test_some.py"], cwd=tmp_path, env=os.environ | settings,
        capture_output=True,
    )  # fmt: skip
    lines = told.read_text().splitlines()
    assert 1 < len(lines) < 20
    answer = Answer("cuda", False, 60, tmp_path, tmp_path / "tests.json")
    collect(answer, lines, done.returncode)
    assert "not reached" in answer.found["table"][0]
    assert not answer.failures


def test_the_junit_file_names_what_was_wrong() -> None:
    row = {"name": "t", "outcome": "failed", "seconds": 1.5, "why": "E  off by 1\x00"}
    found = {"rows": [row], "outcome": "failed (1)", "failures": ["t: off by 1"]}
    suite = ElementTree.fromstring(junit({"smoke": found}))[0]
    assert suite.attrib == {
        "name": "smoke", "tests": "2", "failures": "1", "errors": "1", "skipped": "0",
    }  # fmt: skip
    assert "off by 1?" in (suite[0][0].text or "")
