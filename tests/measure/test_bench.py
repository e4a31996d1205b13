"""`fastmaml.bench` against what is measured by hand; no time is asserted."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_learner import LR, QUICK, episodes, learner, model
from hand_loop import hand_loop
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import (
    FirstOrder,
    MixedMode,
    Reptile,
    Truncated,
    Unrolled,
)
from fastmaml.measure.bench import Sweep, exact, measure
from fastmaml.measure.bench.failure_text import reason_of
from fastmaml.measure.profile import LiveMemory
from fastmaml.ops import parallel_region
from fastmaml.rules import LSLR


def by_hand(batch: fm.Episodes, steps: int, second_order: bool) -> Tensor:
    """The meta-gradient as a plain loop over tasks has it."""
    first_order = not second_order
    _, found = hand_loop(model(), F.mse_loss, batch, LR, steps, first_order)
    return torch.cat([g.flatten() for g in found.values()])


@pytest.mark.slow
def test_errors_are_those_of_a_plain_loop() -> None:
    found = fm.bench(learner(), episodes(), steps=(1, 4), **QUICK)
    assert found.precision == "float64"
    assert [(c.configuration.method, c.configuration.steps) for c in found.cells] == [
        (name, k)
        for k in (1, 4)
        for name in ("Unrolled", "Checkpointed", "MixedMode", "FirstOrder")
    ]
    for cell in found.cells:
        c = cell.configuration
        assert cell.error is not None
        assert cell.cosine is not None
        if c.gradient.exact:
            assert cell.error < 1e-12
            assert cell.cosine == pytest.approx(1, abs=1e-12)
            continue
        exact, first = (by_hand(episodes(), c.steps, order) for order in (True, False))
        error = float((first - exact).norm() / exact.norm())
        cosine = float(first @ exact / first.norm() / exact.norm())
        assert error > 0.05, "the second-order term has to be large, or nothing is tested"
        assert cell.error == pytest.approx(error, rel=1e-9)
        assert cell.cosine == pytest.approx(cosine, rel=1e-9)


def live_peak(maml: fm.MAML, batch: fm.Episodes) -> int:
    for _ in range(2):  # the second call of a recording is checked against an eager run
        maml(batch).loss.backward()
    maml.zero_grad()
    with LiveMemory() as memory:
        maml(batch).loss.backward()
    return memory.peak_bytes


def first_peak(maml: fm.MAML, batch: fm.Episodes) -> int:
    with LiveMemory() as memory:
        maml(batch).loss.backward()
    return memory.peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["eager", "captured"])
def test_memory_is_what_is_counted_by_hand(executor: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = fm.bench(
            learner(), episodes(), methods=(Unrolled(), MixedMode(2)), steps=(3,),
            executors=[executor], **QUICK,
        )  # fmt: skip
        for cell in found.cells:
            method = cell.configuration.gradient
            maml = learner(gradient=method, steps=3, executor=executor)
            assert cell.peak_bytes == live_peak(maml, episodes())
            maml = learner(gradient=method, steps=3, executor=executor)
            assert cell.first_peak_bytes == first_peak(maml, episodes())
            assert cell.needed_bytes == max(cell.peak_bytes, cell.first_peak_bytes)
            assert cell.tasks_at_once == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_chunks_on_several_threads_count_together() -> None:
    if parallel_region() is None:
        pytest.skip("the native module is not built, so chunks run one after the other")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        options: dict[str, Any] = {"executor": "captured", "tasks_chunk": 2, "steps": 2}
        found = fm.bench(
            learner(**options), episodes(4), methods=(Unrolled(),), steps=(2,), **QUICK
        )
        alone = learner(**options, gradient=Unrolled())
        (cell,) = found.cells
        assert cell.tasks_at_once == 4
        assert cell.peak_bytes == 2 * live_peak(alone, episodes(4)[:2])
        assert "one of 2 chunks" in cell.memory
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_memory_that_cannot_be_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(LiveMemory):
        def __enter__(self) -> LiveMemory:
            raise RuntimeError("sparse tensors have no storage")

    monkeypatch.setattr(measure, "LiveMemory", Blind)
    found = fm.bench(learner(), episodes(), methods=(Unrolled(),), steps=(1,), **QUICK)
    (blind,) = found.cells
    assert blind.peak_bytes is None
    assert blind.turns
    assert "peak not measured: sparse tensors have no storage" in str(found)
    how = measure.explained(learner(), episodes())
    compiled = measure.peak(learner(executor="compiled"), episodes(), how)
    assert compiled.size is None
    assert "Inductor" in compiled.how


@pytest.mark.slow
def test_out_of_memory_is_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.step_seconds

    def short_of_memory(maml: fm.MAML, batch: fm.Episodes) -> float:
        if maml.steps > 2 and isinstance(maml.gradient, Unrolled):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(maml, batch)

    monkeypatch.setattr(measure, "step_seconds", short_of_memory)
    found = fm.bench(
        learner(), episodes(), methods=(Unrolled(), FirstOrder()), steps=(1, 3), **QUICK
    )
    assert [c.refusal for c in found.cells] == ["", "", "out of memory", ""]
    assert "out of memory" in str(found)
    assert not found.interrupted


def test_the_cpu_s_own_refusal_of_memory_is_told_apart() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert reason_of(error.value) == "out of memory"
    assert reason_of(ValueError("no\nsuch thing")) == "refused: no such thing"


def test_what_would_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "free_bytes", lambda device: 1)
    found = fm.bench(learner(), episodes(), methods=(Unrolled(),), steps=(2,), **QUICK)
    (left,) = found.cells
    assert left.refusal.startswith("left out: needs about")
    assert "free" in left.refusal
    assert left.turns == ()
    assert any("no exact meta-gradient" in note for note in found.notes)


def test_what_is_refused_says_why() -> None:
    found = fm.bench(
        learner(rule=LSLR(LR), lr=None), episodes(), methods=(FirstOrder(), Reptile()), steps=(1,),
        backends=("reference", "cuda"), **QUICK,
    )  # fmt: skip
    first, reptile, cuda, _ = found.cells
    assert first.refusal == ""
    assert "learned rates" in reptile.refusal
    assert "backend='cuda'" in cuda.refusal
    assert "cuda" in str(found)


@pytest.mark.slow
def test_learned_rates_that_are_others_are_mentioned() -> None:
    maml = learner(rule=LSLR(LR), lr=None, steps=2)
    with torch.no_grad():
        for rate in maml.rates.values():
            rate.fill_(0.01)
    found = fm.bench(maml, episodes(), methods=(Unrolled(),), steps=(2, 3), **QUICK)
    assert any("K=[3]" in note for note in found.notes)
    assert all(c.error is not None and c.error < 1e-12 for c in found.cells)


class Stopping(nn.Module):
    """Mean squared error until it was called so many times."""

    def __init__(self, error: BaseException, after: int) -> None:
        super().__init__()
        self.error, self.left = error, after

    def __deepcopy__(self, memo: Any) -> Stopping:
        return self  # the calls of all copies count together

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return F.mse_loss(output, target)


def test_an_error_of_the_model_comes_first() -> None:
    with pytest.raises(ZeroDivisionError, match="mine"):
        fm.bench(learner(loss=Stopping(ZeroDivisionError("mine"), 0)), episodes())


@pytest.mark.slow
def test_ctrl_c_keeps_the_rows() -> None:
    count = Stopping(KeyboardInterrupt(), 10**9)
    fm.bench(learner(loss=count), episodes(), methods=(Unrolled(),), steps=(1,), **QUICK)
    loss = Stopping(KeyboardInterrupt(), 3 * (10**9 - count.left) // 2)
    found = fm.bench(learner(loss=loss), episodes(), methods=(Unrolled(),), steps=(1, 2), **QUICK)
    assert found.interrupted
    (row,) = found.cells
    assert row.configuration.steps == 1
    assert row.turns
    assert not row.in_rounds
    assert row.peak_bytes
    assert "interrupted" in str(found)
    assert found.as_dict()["interrupted"] is True


@pytest.mark.slow
def test_turns_are_those_of_rounds() -> None:
    """The one that each configuration takes at its beginning is only kept until then."""
    done: list[Sweep] = []
    found = fm.bench(
        learner(), episodes(), methods=(Unrolled(), FirstOrder()), steps=(1,), changed=done.append,
        **QUICK,
    )  # fmt: skip
    assert [[len(c.turns) for c in sweep.cells] for sweep in done] == [[1], [1, 1], [1, 1], [2, 2]]
    assert [all(c.in_rounds for c in sweep.cells) for sweep in done] == [False, False, True, True]
    assert [sweep.interrupted for sweep in done] == [True] * 4
    assert not found.interrupted
    assert found.cells == done[-1].cells
    first = [c.turns[0] for c in done[1].cells]
    assert not set(first) & {t for c in found.cells for t in c.turns}
    assert all(c.in_rounds for c in found.cells)


@pytest.mark.slow
def test_the_user_s_state_is_untouched() -> None:
    layers = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    maml = fm.MAML(nn.Sequential(*layers).double(), lr=LR, loss=F.mse_loss, batch_norm="module")
    maml.module[2].eval()
    maml(episodes()).loss.backward()
    before = copy.deepcopy(maml.state_dict())
    gradients = [p.grad for p in maml.parameters()]
    values = [g.clone() for g in gradients if g is not None]
    modes = [m.training for m in maml.modules()]
    states = torch.get_rng_state(), random.getstate()
    fm.bench(maml, episodes(), steps=(1,), vs="first-order", **QUICK)
    after = maml.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is g for p, g in zip(maml.parameters(), gradients, strict=True))
    assert all(torch.equal(g, v) for g, v in zip(gradients, values, strict=True) if g is not None)
    assert [m.training for m in maml.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.slow
def test_dropout_is_compared_with_the_same_masks() -> None:
    net = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    maml = fm.MAML(net, lr=LR, loss=F.mse_loss, executor="eager")
    found = fm.bench(maml, episodes().to(torch.float32), methods=(Unrolled(),), steps=(2,), **QUICK)
    assert found.cells[0].error is not None
    assert found.cells[0].error < 1e-5


@pytest.mark.slow
def test_tasks_are_sliced_repeated_or_drawn() -> None:
    options: dict[str, Any] = {"methods": (FirstOrder(),), "steps": (1,), **QUICK}
    found = fm.bench(learner(), episodes(3), tasks=(2, 5), **options)
    assert [c.configuration.tasks for c in found.cells] == [2, 5]
    assert any("repeated" in note for note in found.notes)
    drawn = fm.bench(learner(), [episodes(3, seed=1), episodes(3, seed=2)], tasks=(5,), **options)
    assert drawn.notes == ()
    whole = fm.Episodes(
        *(
            fm.Batch(torch.cat([a.inputs, b.inputs])[:5], torch.cat([a.targets, b.targets])[:5])
            for a, b in zip(
                episodes(3, seed=1).sets().values(),
                episodes(3, seed=2).sets().values(),
                strict=True,
            )
        )
    )
    exact, first = (by_hand(whole, 1, order) for order in (True, False))
    assert drawn.cells[0].error == pytest.approx(float((first - exact).norm() / exact.norm()))


@pytest.mark.slow
def test_a_loss_that_cannot_be_double_is_compared_in_its_own_precision() -> None:
    weight = torch.ones(2)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        assert output.dtype == weight.dtype, "only float32 here"
        return F.mse_loss(output * weight, target)

    maml = fm.MAML(model().float(), lr=LR, loss=loss, executor="eager")
    options = {"methods": (Unrolled(), FirstOrder()), **QUICK}
    found = fm.bench(maml, episodes().to(torch.float32), steps=(1,), **options)
    assert "only float32 here" in " ".join(found.notes)
    assert found.precision == "own precision"
    assert all(c.error is not None and c.exact_in == "own precision" for c in found.cells)
    found = fm.bench(maml, episodes().to(torch.float32), steps=(1, 2), **options)
    assert len(found.notes) == 1, "what takes no float64 is not asked again"


@pytest.mark.slow
def test_one_failure_in_float64_is_one_cell_s(monkeypatch: pytest.MonkeyPatch) -> None:
    real = exact.gradient

    def short_of_memory(maml: fm.MAML, batch: fm.Episodes) -> Tensor:
        if maml.steps == 2 and next(maml.parameters()).dtype == torch.float64:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(maml, batch)

    monkeypatch.setattr(exact, "gradient", short_of_memory)
    maml = fm.MAML(model().float(), lr=LR, loss=F.mse_loss, executor="eager")
    batch = episodes().to(torch.float32)
    found = fm.bench(maml, batch, methods=(Unrolled(),), steps=(1, 2, 3), **QUICK)
    assert [c.exact_in for c in found.cells] == ["float64", "own precision", "float64"]
    assert found.precision == "float64 or own precision"
    (note,) = found.notes
    assert "for 2 steps, 3 tasks" in note
    assert "out of memory" in note
    assert [c["exact_gradient_in"] for c in found.as_dict()["cells"]] == [
        "float64", "own precision", "float64",
    ]  # fmt: skip


def test_second_order_against_first_order(tmp_path: Path) -> None:
    found = fm.bench(
        learner(), episodes(), methods=(Unrolled(), Truncated(1)), steps=(1, 3), vs="first-order",
        budget=10**6, **QUICK,
    )  # fmt: skip
    cells = {(c.configuration.method, c.configuration.steps): c for c in found.cells}
    assert [(p.exact.method, p.exact.steps) for p in found.second_order] == [
        ("Unrolled", 1),
        ("Unrolled", 3),
    ]
    for price in found.second_order:
        steps = price.exact.steps
        exact, first = cells["Unrolled", steps], cells["FirstOrder", steps]
        assert exact.peak_bytes
        assert first.peak_bytes
        assert price.memory == exact.peak_bytes / first.peak_bytes
        assert (price.error, price.cosine) == (first.error, first.cosine)
        assert price.time is not None
        assert price.time.low <= price.time.median <= price.time.high
    assert "second order against first order" in str(found)
    assert "Truncated(last=1)" in str(found)
    written = found.save(tmp_path / "new")
    assert [path.name for path in written] == ["bench.json", "bench.png"]
    saved = json.loads(written[0].read_text())
    assert saved == json.loads(json.dumps(found.as_dict()))
    assert saved["device"].startswith("cpu")
    assert saved["versions"]["torch"] == torch.__version__
    assert len(saved["cells"]) == 6
    assert len(saved["cells"][0]["turns_s"]) == 2
    assert saved["fits"]["budget"] == 10**6
    assert written[1].read_bytes().startswith(b"\x89PNG")
