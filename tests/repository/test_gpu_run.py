"""`benchmarks/gpu.py`: whatever one part does, the others' results survive."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from places import ROOT

from benchmarks import gpu
from benchmarks.gpu_parts import PARTS, Part, health, pool
from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.tests import FILES, GRAPHS
from benchmarks.support import origin
from benchmarks.tables.gpu import measured


def options(place: Path, seconds: float = 60.0) -> argparse.Namespace:
    return argparse.Namespace(
        out=place, device="cpu", quick=True, seconds=seconds, boxes=1.0, here=True, parts=[]
    )


class Scripted(gpu.Run):
    """Each part is a line of Python, which has `answer` and `time`."""

    scripts: dict[str, str]

    def command(self, part: Part, box: float, answer: Path) -> list[str]:
        head = (
            "import sys, time, os\nfrom pathlib import Path\n"
            "from benchmarks.gpu_parts.answer import Answer\n"
            f"answer = Answer('cpu', True, {box}, Path({str(answer.parent)!r}), "
            f"Path({str(answer)!r}), '--resume' in sys.argv)\n"
        )
        return [sys.executable, "-c", head + self.scripts[part.name]]


BREAKS = """
from benchmarks.gpu_parts import health
from benchmarks.gpu_parts.answer import Broken
health.broken = lambda device: True
try:
    for x in filter(answer.begins, range(6)):
        answer.row(x=x) if x not in (2, 4) else None
        with answer.guarding(f'outer {x}'), answer.guarding(f'inner {x}'):
            if x in (2, 4):
                raise RuntimeError('CUDA error: an illegal memory access was encountered')
except Broken:
    sys.exit(health.BROKEN)
sys.exit(1)
"""
"""Two of six break the process that they are in."""


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_leaves_the_results_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "KEPT", tmp_path / "kept")
    run = Scripted(options(tmp_path / "out", 40))
    run.scripts = {
        "good": "answer.row(x=1); answer.say('one row')",
        "wrong": "answer.row(x=2); answer.fail('the numbers differ'); sys.exit(1)",
        "crash": "answer.row(x=3); os.abort()",
        "hangs": "answer.row(x=4, name='a', outcome='failed', why='\\x1b[31mred'); time.sleep(60)",
        "breaks": BREAKS,
        "last": "answer.say('after all of them')",
    }
    parts = [Part(name, 6.0 if name == "hangs" else 20.0, name) for name in run.scripts]
    start = time.monotonic()
    assert not run.all(parts)
    assert time.monotonic() - start < 30
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    outcomes = {name: part["outcome"] for name, part in found.items()}
    assert outcomes == {
        "good": "done", "wrong": "failed (1)", "crash": "failed (-6)", "hangs": "out of time",
        "breaks": "failed (1)", "last": "done",
    }  # fmt: skip
    assert [row["x"] for row in found["breaks"]["rows"]] == [0, 1, 3, 5]
    assert found["breaks"]["broke"] == ["inner 2", "inner 4"]
    assert [part["rows"][0]["x"] for part in list(found.values())[:4]] == [1, 2, 3, 4]
    told = capsys.readouterr().out
    assert "-- last: after all of them" in told
    assert "!! wrong: the numbers differ" in told
    suites = ElementTree.parse(tmp_path / "out" / "gpu_tests.xml").getroot()
    assert [suite.get("name") for suite in suites] == list(run.scripts)
    assert suites[3].get("failures") == "1"
    assert (tmp_path / "out" / "gpu.log").read_text().count("====") == 16
    assert len(list((tmp_path / "out").iterdir())) == 3, "eight files come back, at most"


@pytest.mark.slow
def test_what_there_is_no_time_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(gpu, "GRACE", 3.0)
    run = Scripted(options(tmp_path, 5.0))
    run.scripts = {"long": "time.sleep(9)", "never": "answer.say('no')"}
    assert not run.all([Part("long", 60, ""), Part("never", 60, "")])
    outcomes = [part["outcome"] for part in run.result["parts"].values()]
    assert outcomes == ["out of time", "no time left"]


def test_a_quick_run_on_a_cpu_is_given_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, box, seconds in (
        (["--quick", "--device", "cpu"], 200.0, 4 * gpu.SECONDS),
        (["--device", "cpu"], 50.0, gpu.SECONDS),
        (["--quick"], 50.0, gpu.SECONDS),
        (["--quick", "--device", "cpu", "--boxes", "2", "--seconds", "70"], 70.0, 70.0),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--here", "--out", str(tmp_path), *flags])
        monkeypatch.setattr(gpu, "KEPT", tmp_path / "kept")
        given = gpu.parsed()
        assert given.seconds == seconds
        run = Scripted(given)
        run.scripts = {"exactness": "answer.say('at once')"}
        assert run.all([Part("exactness", 50.0, "")])
        found = run.result["parts"]["exactness"]["box"]
        assert found == pytest.approx(box, abs=5.0), flags


def test_the_table_is_short_and_failures_have_room() -> None:
    parts: dict[str, Any] = {
        "a": {"table": [f"line {i}" for i in range(60)], "failures": []},
        "b": {"table": [], "failures": ["x" * 500] * 30},
    }
    lines = gpu.table(parts)
    assert len(lines) == gpu.LONGEST_TABLE
    assert sum(line.startswith("!! b") for line in lines) >= 10
    assert max(map(len, lines)) <= 160


def test_boxes_fit_and_parts_are_modules() -> None:
    for part in PARTS:
        assert importlib.util.find_spec(f"benchmarks.gpu_parts.{part.name}"), part.name
    boxes = {part.name: part.box for part in PARTS}
    assert [part.name for part in PARTS[:4]] == ["build", "smoke", "exactness", "graphs"]
    assert boxes["build"] <= 90
    assert boxes["smoke"] <= 60
    assert boxes["exactness"] <= 60
    assert PARTS[-1].name == "tests", "what has no end comes last"
    before = sum(part.box for part in PARTS[:-1])
    assert before <= gpu.SECONDS - 15, "each has its time though all others take theirs"


def test_every_file_with_a_test_for_a_gpu_is_run() -> None:
    marked = {
        path.relative_to(ROOT / "tests").with_suffix("").as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.parent != Path(__file__).parent
        and any(word in path.read_text() for word in ("mark.gpu", "on_backends", "BACKENDS)"))
    }
    assert marked == {*FILES, *GRAPHS}


POOLED = """
import os
from benchmarks.gpu_parts import health

broke = []
health.broken = lambda device: bool(broke)

def checks(device):
    def check(name):
        if name == "dies":
            os._exit(3)
        if name == "sticky":
            broke.append(name)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if name == "skips":
            import pytest
            pytest.skip("not here")
        assert name != "wrong", "1 is not 2"
        print("noise on the way out", flush=True)
        return {"pid": os.getpid()}
    return check
"""


def test_a_check_that_takes_its_process_with_it_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pooled_checks.py").write_text(POOLED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    answer = Answer("cpu", True, 60, tmp_path, tmp_path / "pool.json")
    names = ["a", "dies", "b", "sticky", "c", "wrong", "d", "skips"]
    pool.checked(answer, "pooled_checks", names, 1)
    rows = {row["name"]: row for row in answer.found["rows"]}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "a": "passed", "dies": "error", "b": "passed", "sticky": "error", "c": "passed",
        "wrong": "failed", "d": "passed", "skips": "skipped",
    }  # fmt: skip
    processes = [rows[name]["pid"] for name in "abcd"]
    assert len(set(processes)) == 3, "a new process after each that ended, and else the same"
    assert processes[2] == processes[3]
    assert len(answer.failures) == 3
    assert answer.found["counts"]["passed"] == 4


def test_a_process_that_a_driver_holds_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held_checks.py").write_text("import time\ndef checks(device): time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    worker = pool.Worker("held_checks", "cpu")
    kill = worker.process.kill
    monkeypatch.setattr(worker.process, "kill", lambda: None)
    try:
        assert worker.alive()
        worker.close()
        assert worker.process.poll() is None
        assert not worker.alive()
    finally:
        kill()
        worker.process.wait()


@pytest.mark.slow
def test_what_the_end_of_the_box_cuts_off_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import time\ndef checks(device):\n    return lambda name: time.sleep(0.7)\n"
    (tmp_path / "slow_checks.py").write_text(slow)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    answer = Answer("cpu", True, 4, tmp_path, tmp_path / "pool.json")
    pool.checked(answer, "slow_checks", map(str, range(90)), 2)
    assert not answer.failures
    counts = answer.found["counts"]
    assert counts["error"] == 0 < counts["passed"]
    assert answer.found["not_reached"] == 90 - counts["passed"]


def test_what_is_no_number_is_told_in_json(tmp_path: Path) -> None:
    answer = Answer("cpu", True, 9, tmp_path, tmp_path / "a.json")
    answer.row(error=float("nan"), pair=(1.0, float("-inf")), ok=2.5)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found["rows"] == [{"error": "nan", "pair": [1.0, "-inf"], "ok": 2.5}]


def test_whether_cuda_works_is_asked_of_cuda() -> None:
    assert not health.broken("cpu")
    assert health.broken("cuda") != torch.cuda.is_available()


def test_a_measurement_that_fails_leaves_the_others(tmp_path: Path) -> None:
    answer = Answer("cpu", True, 9, tmp_path, tmp_path / "a.json")
    for what in filter(answer.begins, (1, 0, 2, 1)):
        with answer.guarding(f"by {what}"):
            answer.row(x=1 / what)
    with answer.guarding("refuses"):
        raise SystemExit("not the same parameters")
    assert [row["x"] for row in answer.found["rows"]] == [1, 0.5]
    assert answer.failures == [
        "by 0: ZeroDivisionError: division by zero",
        "refuses: SystemExit: not the same parameters",
    ]


def test_nothing_that_passed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pooled_checks.py").write_text(POOLED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    answer = Answer("cpu", True, 60, tmp_path, tmp_path / "pool.json")
    pool.checked(answer, "pooled_checks", ["skips"], 1)
    assert answer.failures == ["no check passed"]


def test_tables_of_what_was_measured() -> None:
    row = {"workload": "w", "contestants": {}}
    row["contestants"] = {
        "fastmaml": {"median": 2.0},
        "hand-written loop": {"median": 300.0},
        "higher": {"refused": "no"},
    }
    jax = {"workload": "w", "contestants": {"JAX jit of vmap": {"median": 5.0}}}
    found = {
        "device": "a GPU", "torch": "2", "triton": "3", "commit": "0123456789", "quick": False,
        "parts": {
            "steps": {"rows": [row], "failures": ["x"]},
            "jax": {"rows": [jax]},
            "memory": {"rows": [{"method": "Unrolled", "growth": 1.234}]},
        },
    }  # fmt: skip
    text = measured(found)
    assert "| fastmaml | 2.00 (150.0x) |" in text
    assert "| JAX jit of vmap | 5.00 (60.0x) |" in text
    assert "| higher | – |" in text
    assert "`Unrolled` 1.23" in text
    assert "1 checks or tests failed" in text


def test_a_carried_commit_stands_in_for_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setattr(origin, "CARRIED", tmp_path / ".commit")
    assert origin.commit() == "unknown"
    (tmp_path / ".commit").write_text("abc-dirty\n")
    assert origin.commit() == "abc-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))  # nor is git there
    assert origin.commit() == "abc-dirty"
