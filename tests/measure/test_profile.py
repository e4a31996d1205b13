"""`fm.profile`: phases, calls, FLOPs and memory of a meta-step."""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import classifier, episodes, make
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.measure.profile import Quantiles, machine, profiler
from fastmaml.measure.profile.phases import INSIDE, PHASES, REST
from fastmaml.measure.profile.spans import Spans

EXECUTORS = ("eager", "captured")


def cells(report: fm.Report, field: str) -> dict[str, Any]:
    return {phase.name: getattr(phase, field) for phase in report.phases}


class Clock:
    """Its moments are told."""

    def __init__(self, *moments: int) -> None:
        self.moments = iter(moments)

    def now(self) -> int:
        return next(self.moments)

    def settle(self) -> None:
        pass

    def between(self, a: int, b: int) -> float:
        return float(b - a)


def test_phases_are_timed_from_switch_to_switch() -> None:
    spans = Spans(Clock(0, 2, 5, 6, 9, 12, 20))  # type: ignore[arg-type]
    with spans.step():
        spans.switch("sampling")  # 2 to 12, but for the chunk
        with spans.chunk():  # from 5
            spans.switch("query")  # 6 to 9
    assert spans.wall == 12
    assert spans.seconds() == {"sampling": 10, "query": 3, REST: -1}, "the chunk lay in it"


def test_threads_share_the_time() -> None:
    spans = Spans(Clock(0, 0, 0, 4, 0, 0, 6, 8, 8))  # type: ignore[arg-type]

    def chunk() -> None:
        with spans.chunk():
            spans.switch("query")

    with spans.step():
        for _ in range(2):
            thread = threading.Thread(target=chunk)
            thread.start()
            thread.join()
    assert spans.threads in (1, 2)  # an identity may be used again
    assert spans.seconds()["query"] * spans.threads == 10
    assert sum(spans.seconds().values()) == spans.wall == 8


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_phases_add_up(executor: str, chunk: int | None) -> None:
    report = fm.profile(make(executor=executor, tasks_chunk=chunk), episodes(), repeats=3)
    seconds = cells(report, "seconds")
    timed = [s for s in seconds.values() if not isinstance(s, str)]
    assert sum(s for s in cells(report, "share").values() if not isinstance(s, str)) == (
        pytest.approx(1, abs=1e-12)
    )
    assert all(seconds[name] > 0 for name in INSIDE if name != "recomputation")
    low, high = report.profiled_seconds.lower, report.profiled_seconds.upper
    assert low * (1 - 1e-9) <= sum(timed) <= high * (1 + 1e-9), "the mean of the middle half"
    assert list(seconds) == [name for name in PHASES if name != "meta-step"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_little_is_left_for_the_rest(executor: str) -> None:
    """What no phase was marked for, on one thread: the rest is a row, and cannot hide the others.

    The best of some reports, as the machine may have other work at any moment.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        net = nn.Sequential(nn.Linear(3, 256), nn.Tanh(), nn.Linear(256, 256), nn.Linear(256, 4))
        maml = make(net.double(), executor=executor, steps=4, check_finite=False)
        shares = []
        for _ in range(4):
            report = fm.profile(maml, episodes(), repeats=4)
            shares.append(report.phase(REST).share)
            assert report.marked_seconds == pytest.approx(
                sum(s for s in cells(report, "seconds").values() if not isinstance(s, str))
            )
    finally:
        torch.set_num_threads(threads)
    assert -0.01 < min(shares) < 0.1  # type: ignore[type-var]


def quantiles(median: float) -> Quantiles:
    return Quantiles(median, median, median)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("plain", "note"), [(1.0, ""), (0.96, ""), (0.9, "11% more"), (1.25, "20% less")]
)
def test_phases_that_miss_the_plain_step_are_noted(plain: float, note: str) -> None:
    report = fm.profile(make(), episodes(), repeats=1)
    rows = tuple(
        replace(p, seconds=p.seconds if isinstance(p.seconds, str) else 0.0) for p in report.phases
    )
    rows = (*rows[:-1], replace(rows[-1], seconds=1.0))
    report = replace(
        report, phases=rows, step_seconds=quantiles(plain), profiled_seconds=quantiles(1.1 * plain)
    )
    assert report.overhead == pytest.approx(0.1)
    assert report.as_dict()["overhead"] == report.overhead
    found = " ".join(profiler._missing_time(report))
    assert (note in found) if note else not found


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_everything_is_left_as_it_was(executor: str) -> None:
    options = {"executor": executor, "batch_norm": "module", "steps": 1, "lr": 0.1}
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4)
    ).double()
    maml = make(model, **options)
    optimizer = torch.optim.Adam(maml.parameters(), 1e-2)
    maml(episodes()).loss.backward()
    optimizer.step()
    before = {
        "parameters": [p.detach().clone() for p in maml.parameters()],
        "gradients": [p.grad for p in maml.parameters()],
        "values": [p.grad.clone() for p in maml.parameters()],  # type: ignore[union-attr]
        "buffers": [b.clone() for b in maml.buffers()],
        "state": [x.clone() for s in optimizer.state.values() for x in s.values()],
        "modes": [m.training for m in maml.modules()],
        "random": (torch.get_rng_state(), random.getstate()),
    }
    attributes = set(vars(maml))
    fm.profile(maml, episodes(), optimizer, repeats=2, trace=True)
    assert all(map(torch.equal, maml.parameters(), before["parameters"]))  # type: ignore[arg-type]
    assert all(p.grad is g for p, g in zip(maml.parameters(), before["gradients"], strict=True))
    assert all(map(torch.equal, before["gradients"], before["values"]))  # type: ignore[arg-type]
    assert all(map(torch.equal, maml.buffers(), before["buffers"]))  # type: ignore[arg-type]
    after = [x for s in optimizer.state.values() for x in s.values()]
    assert all(map(torch.equal, after, before["state"]))  # type: ignore[arg-type]
    assert [m.training for m in maml.modules()] == before["modes"]
    state, python = before["random"]  # type: ignore[misc]
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert set(vars(maml)) == attributes


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_later_step_is_the_same(executor: str) -> None:
    plain, profiled = make(executor=executor), make(executor=executor)
    fm.profile(profiled, episodes(), repeats=1)
    for maml in (plain, profiled):
        maml(episodes()).loss.backward()
    for p, q in zip(plain.parameters(), profiled.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


class Sources:
    """A source of meta-batches that counts and ends."""

    def __init__(self, count: int) -> None:
        self.count, self.drawn = count, 0

    def __iter__(self) -> Iterator[fm.Episodes]:
        for _ in range(self.count):
            self.drawn += 1
            yield fm.Episodes(episodes().support.map(lambda x: x + 0), episodes().query)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_sampling_and_the_optimizer_are_phases(executor: str) -> None:
    maml, source = make(executor=executor), Sources(1000)
    optimizer = torch.optim.SGD(maml.parameters(), 0.1)
    report = fm.profile(maml, source, optimizer, repeats=2)
    for name in ("sampling", "optimizer"):
        phase = report.phase(name)
        assert phase.seconds > 0  # type: ignore[operator]
        assert phase.calls > 0  # type: ignore[operator]
    assert source.drawn < 20


def test_a_source_that_ends_begins_anew_or_says_so() -> None:
    source = Sources(3)
    fm.profile(make(), source, repeats=2)
    assert source.drawn > 3
    with pytest.raises(ValueError, match=r"nothing more after 3 meta-batches.*goes on"):
        fm.profile(make(), iter(Sources(3)), repeats=2)


@pytest.mark.slow
def test_a_model_that_loops_over_tasks() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y if y.sum() > 0 else -y

    maml = make(Branching().double())
    logging.getLogger("fastmaml").setLevel(logging.ERROR)
    try:
        report = fm.profile(maml, episodes(), repeats=2)
    finally:
        logging.getLogger("fastmaml").setLevel(logging.NOTSET)
    assert report.setting["executor"] == "eager"
    assert any("cannot be captured" in line for line in report.setting["reasons"])
    assert any("one at a time" in line for line in report.setting["reasons"])
    assert report.phase("support forward").calls >= maml.steps * episodes().tasks  # type: ignore[operator]


def test_the_executor_that_hides_its_phases_says_so() -> None:
    """Without Inductor's minutes: what it would have compiled runs as it is, as one program."""
    from fastmaml.engine.recording.captured import Captured
    from fastmaml.engine.recording.replay_code import compiled

    maml = make(executor="compiled")
    maml._execute = Captured(lambda tape: compiled(tape), required=True)
    check_hidden(fm.profile(maml, episodes(), repeats=2))


@pytest.mark.slow
def test_compiled() -> None:
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("Inductor needs a C++ compiler, and there is neither g++ nor clang++")
    check_hidden(fm.profile(make(executor="compiled"), episodes(), repeats=2))


def check_hidden(report: fm.Report) -> None:
    assert "one program of Inductor's" in report.phase("query").seconds  # type: ignore[operator]
    assert "Inductor" in report.peak_bytes  # type: ignore[operator]
    whole = report.phase("meta-step")
    assert whole.seconds > 0  # type: ignore[operator]
    assert isinstance(whole.flops, str)
    shares = [p.share for p in report.phases if not isinstance(p.share, str)]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert report.timeline is None
    assert "not visible" in " ".join(str(report).split())


def test_the_report_on_the_screen_and_on_the_disk(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    maml = make()
    report = fm.profile(maml, episodes(), repeats=2, trace=True, snapshot=True, title="mine")
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())  # lines break where their figures are long
    for wanted in ("mine", "meta-backward", "profiling on costs", "tasks/s", "gradient: Unrolled"):
        assert wanted in text
    assert "not measured: a fixed meta-batch was given" in text
    written = report.save(tmp_path / "out")
    assert {p.name for p in written} == {"profile.json", "profile.png", "trace.json"}
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert found == json.loads(json.dumps(report.as_dict()))
    assert [p["name"] for p in found["phases"]] == [p.name for p in report.phases]
    assert found["setting"]["versions"]["torch"] == torch.__version__
    assert found["setting"]["reasons"] == list(report.setting["reasons"])
    assert (tmp_path / "out" / "profile.png").read_bytes().startswith(b"\x89PNG")
    names = {e.get("name") for e in json.loads(report.files["trace.json"])["traceEvents"]}
    assert {"support forward", "inner backward", "query", "meta-backward"} <= names
    assert any("only the CUDA allocator" in note for note in report.notes)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("width", [20, 40, 69, 80, 200])
def test_no_cell_is_cut_short_on_a_narrow_screen(width: int) -> None:
    pytest.importorskip("rich")
    from fastmaml.measure.profile.table import as_text

    report = fm.profile(make(), episodes(), repeats=1)
    wide = [line.split() for line in as_text(report, 200).splitlines()]
    begin = next(i for i, line in enumerate(wide) if line[:1] == ["phase"])
    rows = wide[begin : begin + 2 + len(report.phases)]
    words = [line.split() for line in as_text(report, width).splitlines()]
    assert all(row in words for row in rows if "─" not in row[0])


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9"), "out of memory"),
        (RuntimeError("\"addmm_impl\" not implemented for 'Half'"), "not implemented for 'Half'"),
    ],
)
def test_a_machine_whose_peak_is_unknown(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(machine.Product, "_product", fails)
    report = fm.profile(make(), episodes(), repeats=1)
    for cell in (report.peak_flops, report.phase("query").of_peak):
        assert "512 x 512 matrix products" in cell  # type: ignore[operator]
        assert message in cell  # type: ignore[operator]
    assert report.phase("query").flops > 0  # type: ignore[operator]
    assert "not measured: 512 x 512" in " ".join(str(report).split())


@pytest.mark.parametrize(
    ("free", "dtype", "side"),
    [
        (80e9, torch.float32, 8192),
        (6e9, torch.float64, 4096),
        (1e9, torch.float32, 2048),
        (1e6, torch.float32, 512),
    ],
)
def test_matrices_are_as_large_as_there_is_room_for(
    free: float, dtype: torch.dtype, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda device: int(free))
    assert machine._side(torch.device("cuda"), dtype) == side
    assert machine._side(torch.device("cpu"), dtype) == 512


def test_without_matplotlib_the_numbers_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = fm.profile(make(), episodes(), repeats=1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "fastmaml\[plot\]"'):
        report.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


def lbfgs() -> tuple[Any, ...]:
    maml = make()
    return maml, episodes(), torch.optim.LBFGS(maml.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((classifier(), episodes()), r"maml is a Classifier.*fastmaml\.MAML"),
        ((make(), 3), r"episodes is a int.*Episodes"),
        ((make(), [3]), r"gave a int after 0"),
        ((make(), []), r"gave nothing more after 0"),
        ((make(), episodes(), "adam"), r"optimizer is a str"),
        ((make(), episodes(), torch.optim.SGD(classifier().parameters(), 1)), r"none of maml's"),
        (lbfgs(), r"optimizer is a LBFGS.*closure"),
    ],
)
def test_bad_input(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fm.profile(*arguments)


@pytest.mark.parametrize("repeats", [0, -1, 1.5, True])
def test_bad_repeats(repeats: Any) -> None:
    with pytest.raises(ValueError, match=r"repeats=.*at least 1"):
        fm.profile(make(), episodes(), repeats=repeats)


def test_gradients_are_needed() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"outside torch\.no_grad"):
        fm.profile(make(), episodes())


def test_an_unknown_phase_is_named() -> None:
    report = fm.profile(make(), episodes(), repeats=1)
    with pytest.raises(ValueError, match=r"'backward'.*meta-backward"):
        report.phase("backward")
