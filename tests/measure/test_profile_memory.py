"""The memory of a profile, against `LiveMemory`, by hand, and the process's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import episodes, make
from outcomes import require

import fastmaml as fm
from fastmaml.gradients import Checkpointed, MixedMode, Reptile, Unrolled
from fastmaml.measure.profile import LiveMemory
from fastmaml.measure.profile.phases import Silence
from fastmaml.measure.profile.steps import Step
from fastmaml.measure.profile.watch import Watch

EXECUTORS = ("eager", "captured")

CHILD = """
import torch, fastmaml as fm
torch.set_num_threads(1)
model = torch.nn.Sequential(
    torch.nn.Linear(512, 1024), torch.nn.Tanh(), torch.nn.Linear(1024, 512)
)
maml = fm.MAML(model, 0.1, steps=2, gradient=fm.gradients.Unrolled(), executor="{executor}",
               tasks_chunk=8, loss=lambda y, t: (y - t).square().mean())
batch = fm.Batch(torch.randn(8, 64, 512), torch.randn(8, 64, 512))
report = fm.profile(maml, fm.Episodes(batch, batch), repeats=1)
print(report.peak_bytes, report.resident_bytes)
"""


def cells(report: fm.Report, field: str) -> dict[str, Any]:
    return {phase.name: getattr(phase, field) for phase in report.phases}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode(), Reptile()])
@pytest.mark.parametrize("chunk", [None, 2, 4])
def test_memory_is_that_of_live_memory(executor: str, method: Any, chunk: int | None) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # `LiveMemory` follows one thread
    try:
        maml = make(executor=executor, gradient=method, tasks_chunk=chunk)
        report = fm.profile(maml, episodes(), repeats=1)
        step = Step(maml, episodes(), None)
        with LiveMemory() as memory:
            step(maml, Silence())
    finally:
        torch.set_num_threads(threads)
    assert report.peak_bytes == memory.peak_bytes > 0
    assert max(b for b in cells(report, "peak_bytes").values() if not isinstance(b, str)) == (
        report.peak_bytes
    )
    assert memory.live_bytes == 0


def test_memory_by_phase() -> None:
    kb = 128  # float64 numbers of a kilobyte
    watch = Watch()
    with watch.step():
        watch.switch("support forward")
        kept = torch.ones(2 * kb)
        _ = torch.ones(4 * kb)  # let go at the next line
        _ = None
        watch.switch("query")
        more = kept + 1
        watch.switch("rest")
        del more
        last = torch.zeros(1)
    assert watch.peak_bytes == 3 * 1024
    counts = watch.counts
    assert (counts["support forward"].calls, counts["query"].calls) == (2, 1)
    assert counts["support forward"].retained_bytes == 1024 == counts["query"].retained_bytes
    assert counts["query"].peak_bytes == 2 * 1024
    assert watch.samples[-1].bytes == {"support forward": 1024, "rest": last.nbytes, "query": 0}


@pytest.mark.slow
def test_memory_on_two_threads() -> None:
    """Every thread's calls and tensors count, and none is forgotten where another lets it go."""
    require("cpp")
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            maml = make(executor="captured", tasks_chunk=1)
            found[threads] = fm.profile(maml, episodes(), repeats=1)
    finally:
        torch.set_num_threads(before)
    calls = {t: [c for c in cells(r, "calls").values() if type(c) is int] for t, r in found.items()}
    assert sum(calls[1]) == sum(calls[2]) > 0
    assert found[2].peak_bytes > 0.9 * found[1].peak_bytes  # type: ignore[operator]
    for report in found.values():
        assert report.timeline is not None
        assert sum(sizes[-1] for sizes in report.timeline.bytes.values()) == 0


def test_resident_memory_is_measured_or_says_why() -> None:
    report = fm.profile(make(), episodes(), repeats=1)
    if isinstance(report.resident_bytes, str):
        assert "not measured" in report.resident_bytes
    else:
        assert report.resident_bytes >= 0
        assert Path("/proc/self/clear_refs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_memory_is_within_a_tenth_of_the_resident_memory(executor: str) -> None:
    """Of a fresh process whose allocator gives freed memory back at once."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of the resident memory can be set back on Linux alone")
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    code = CHILD.format(executor=executor)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    if "not measured" in done.stdout:
        pytest.skip(done.stdout)
    live, resident = map(int, done.stdout.split())
    assert live > 50e6, "too little to tell tensors from the noise of an allocator"
    assert abs(resident / live - 1) < 0.1
