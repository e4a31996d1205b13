"""`make peers` finds what a drop-in lacks or has otherwise, and reads what pytest reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import run
from places import BENCHMARKS

from benchmarks.peers import suites
from benchmarks.peers.names import compare
from benchmarks.peers.outcomes import Row, outcome
from benchmarks.peers.signatures import compared
from benchmarks.tables.peers import peers

PEER = {
    "__init__.py": "from .deep import Learner, helper\nimport os\nLIMIT = 3\n",
    "deep.py": """
from textwrap import dedent
def helper(a, b=1): ...
def gone(): ...
def _used(): ...
def _unused(): ...
class Learner:
    rate = 0.1
    def __init__(self, model, lr, first_order=False):
        self.model = model
        self.steps, self.register_buffer = 0, print
        self.register_buffer("count", 0)
        class Inner:
            def __init__(self):
                self.of_another = 1
    def adapt(self, loss, first_order=None): ...
    def clone(self): ...
    def _own(self): ...
    @property
    def module(self): ...
""",
    "elsewhere/__init__.py": "",
    "elsewhere/file.py": "from ..deep import helper\ndef lost(): ...\n",
}
OURS = {
    "__init__.py": "",
    "peer_of_ours/__init__.py": "from .deep import Learner, helper\nLIMIT = 4\n",
    "peer_of_ours/deep.py": """
def helper(a, b=1, c=None): ...
def _used(): ...
class Base:
    def __init__(self, model, lr, first_order=False):
        self.model, self.count = model, 0
    def clone(self): ...
class Learner(Base):
    rate = 0.1
    def adapt(self, loss): ...
    def module(self): ...
""",
}


def written(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    written(tmp_path / "peer_of_ours", PEER)
    written(tmp_path / "doors", OURS)
    monkeypatch.syspath_prepend(tmp_path)
    yield dict(compare("peer_of_ours", "doors", ("peer_of_ours.deep._used",)))
    for name in [n for n in sys.modules if n.partition(".")[0] in ("peer_of_ours", "doors")]:
        del sys.modules[name]


def test_every_public_name_is_looked_for(rows: dict[str, str]) -> None:
    different = {
        "peer_of_ours.LIMIT": "another value",
        "peer_of_ours.deep.Learner.adapt": (
            "no parameter first_order: (self, loss, first_order=None) there, (self, loss) here"
        ),
        "peer_of_ours.deep.Learner.steps": "missing",
        "peer_of_ours.deep.Learner.register_buffer": "missing",
        "peer_of_ours.deep.gone": "missing",
        "peer_of_ours.elsewhere.file.lost": "missing",
    }
    more = ["peer_of_ours.helper", "peer_of_ours.deep.helper"]
    equal = ["peer_of_ours.Learner", "peer_of_ours.deep._used", "peer_of_ours.deep.Learner"]
    attributes = ("clone", "count", "model", "module", "rate")
    equal += [f"peer_of_ours.deep.Learner.{name}" for name in attributes]
    assert rows == {**different, **dict.fromkeys(more, "more"), **dict.fromkeys(equal, "equal")}


def test_a_peer_that_cannot_be_imported_is_no_list_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "broken_peer", {"__init__.py": "", "part.py": "import no_such_thing\n"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        compare("broken_peer", "doors")


def test_a_private_name_that_is_gone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "small_peer", {"__init__.py": ""})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LookupError, match=r"small_peer has no \['small_peer._add'\]"):
        compare("small_peer", "doors", ("small_peer._add", "another._add"))


def test_reasons_explain_by_pattern_and_none_is_needless() -> None:
    rows = [Row("p.a", "equal"), Row("p.b", "more"), Row("p.gym.c", "missing"),
            Row("p.gym.d", "missing"), Row("p.e", "another value")]  # fmt: skip
    found = outcome(rows, {"p.gym.*": "an old interface", "p.a": "equal by now"})
    assert found.counts == {"names": 5, "equal": 1, "more": 1, "explained": 2, "unexplained": 1}
    assert found.explained == {"an old interface": ["p.gym.c", "p.gym.d"]}
    assert found.unexplained == {"p.e": "another value"}
    assert found.needless == ["p.a"]
    assert not found.good
    assert not outcome(rows[:2], {"p.a": "equal by now"}).good
    assert outcome(rows[:4], {"p.gym.*": "an old interface"}).good


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (lambda a, b=1: 0, lambda a, b=1: 0, "equal"),
        (lambda a, b=1: 0, lambda a, b=1, *, c=2: 0, "more"),
        (lambda a, b: 0, lambda a, b=None: 0, "more"),
        (lambda a, b=1: 0, lambda a, b=2: 0, "another default of b"),
        (lambda a, b=1: 0, lambda a, b=1.0: 0, "another default of b"),
        (lambda a, b=1: 0, lambda b=1, a=0: 0, "a at another place"),
        (lambda a, b=1: 0, lambda a, *, b=1: 0, "b at another place"),
        (lambda a: 0, lambda a, b: 0, "b must be given"),
        (lambda a, **more: 0, lambda a: 0, "no **more"),
        (lambda a, b=print: 0, lambda a, b=print: 0, "equal"),
    ],
)
def test_signatures(theirs: Callable[..., Any], ours: Callable[..., Any], told: str) -> None:
    assert compared(theirs, ours).partition(": ")[0] == told


def test_what_pytest_reports(tmp_path: Path) -> None:
    text = """
import pytest
def test_right(): pass
def test_wrong(): assert False
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
def test_not_here(): pytest.skip("no data")
"""
    written(tmp_path, {"test_some.py": text})
    found = suites.pytest(["-q", "--rootdir=.", "test_some.py"], tmp_path)
    assert found == {
        "test_some::test_right": "passed",
        "test_some::test_wrong": "failed",
        "test_some::test_error": "failed",
        "test_some::test_not_here": "skipped: no data",
    }
    assert suites.counted(found) == {"passed": 1, "failed": 2, "skipped": 1}
    with pytest.raises(RuntimeError, match="pytest ran nothing"):
        suites.pytest(["no_such_file.py"], tmp_path)


def test_a_test_is_lost_that_passes_under_the_peer_alone() -> None:
    theirs = {"a": "passed", "b": "passed", "c": "failed", "d": "passed", "e": "skipped: "}
    here = {"a": "passed", "b": "failed", "c": "failed", "e": "failed"}
    assert suites.lost(theirs, here) == ["b", "d"]


def test_clones_are_preferred_to_what_a_package_publishes(tmp_path: Path) -> None:
    for name in ("sources/learn2learn-0.2.0", "clones/learn2learn", "clones/higher"):
        (tmp_path / name / "tests").mkdir(parents=True)
    sources, clones = tmp_path / "sources", tmp_path / "clones"
    assert suites.find(sources, None) == {"learn2learn": sources / "learn2learn-0.2.0" / "tests"}
    assert suites.find(sources, clones) == {
        "learn2learn": clones / "learn2learn" / "tests",
        "higher": clones / "higher" / "tests",
    }


def test_the_program_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = BENCHMARKS / "peers" / "__main__.py"
    with pytest.raises(SystemExit) as ended:
        run(path, "--help")
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        run(path, "--suites", str(tmp_path))
    assert ended.value.code == 2
    assert "has neither learn2learn*/tests nor higher*/tests" in capsys.readouterr().err


def test_the_table() -> None:
    counts = {"names": 9, "equal": 6, "more": 1, "explained": 2, "unexplained": 0}
    tests = {"passed": 3, "failed": 1, "skipped": 0}
    found = {
        "device": "a CPU", "torch": "2", "python": "3", "versions": {"higher": "0.2.1"},
        "names": {"higher": {"counts": counts}}, "numbers": {"counts": tests},
    }  # fmt: skip
    ran = {**found, "suites": {"higher": {"real": tests, "here": tests}}}
    assert "| higher 0.2.1 | 9 | 6 | 1 | 2 | 0 | 3 of 4 | 3 of 4 |" in peers(ran)
    assert "| higher 0.2.1 | 9 | 6 | 1 | 2 | 0 | not run | not run |" in peers(
        {**found, "suites": {}}
    )
