"""Calls 2, 4, 8, ... of a recording are held against an eager run."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch
from outcomes import CAPTURED, outcome, pair, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording import spot_checks
from fastmaml.engine.recording.captured import Captured, Recording
from fastmaml.engine.recording.spot_checks import due
from fastmaml.engine.recording.tape import UncapturableError


def hide(scale: float) -> None:
    """Where no guard looks: in memory of a C extension's."""
    socket.setdefaulttimeout(1000 * scale)


def hidden() -> float:
    return socket.getdefaulttimeout() or 0.0


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    yield
    socket.setdefaulttimeout(before)


class Unrecordable(nn.Linear):
    """From `hidden() == 2000` on it cannot be recorded, or does not run.

    Attributes:
        fails: with what.
    """

    fails: Exception | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if hidden() < 2000:
            return y
        if self.fails:
            raise self.fails
        if torch._C._len_torch_dispatch_stack():
            raise ArithmeticError("no such way")
        return y * 2


class Hiding(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (hidden() / 1000)


def due_after(calls: int) -> int:
    return next(n for n in range(calls + 1, 5) if due(n))


def test_when() -> None:
    assert [n for n in range(1, 70) if due(n)] == [2, 4, 8, 16, 32, 64]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("verb", ["train", "evaluate", "per_task"])
def test_what_no_guard_sees_is_found_by_call_four(after: int, backend: str, verb: str) -> None:
    hide(1.0)
    maml = fm.MAML(
        Hiding(3, 2).double(), 0.3, steps=2, loss=F.mse_loss, executor="captured", backend=backend
    )
    run = {"train": maml, "evaluate": maml.evaluate, "per_task": maml.per_task(task)}[verb]
    for _ in range(after):
        run(vectors())
    hide(1.001)
    what = "the meta-gradient of (weight|bias)|the loss|an output"
    for _ in range(due_after(after) - after - 1):
        run(vectors())
    with pytest.raises(fm.StaleRecordingError, match=rf"({what}).* is off by .*executor=\"eager\""):
        run(vectors())
    run(vectors())  # from a new recording


def recorded(maml: fm.MAML) -> list[Recording]:
    executor = maml._execute
    assert isinstance(executor, Captured)
    return [x for x in executor._kept.values() if isinstance(x, Recording)]


def task(learner: nn.Module, support: fm.Batch, query: fm.Batch) -> Tensor:
    learner.adapt(F.mse_loss(learner(support.inputs), support.targets))
    return F.mse_loss(learner(query.inputs), query.targets)


def test_they_can_be_switched_off() -> None:
    hide(1.0)
    maml = fm.MAML(Hiding(3, 2).double(), 0.3, loss=F.mse_loss, spot_checks=False, **CAPTURED)
    before = outcome(maml, vectors())
    hide(2.0)
    for _ in range(8):
        assert outcome(maml, vectors()).same_bits(before)


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_replays_a_recording_that_a_check_found_stale(fails: bool) -> None:
    """Also where no other can be made, or where the eager run fails."""
    model = Unrecordable(3, 2).double()
    model.fails = ArithmeticError("no such way") if fails else None
    maml = fm.MAML(model, 0.3, loss=F.mse_loss, executor="captured")
    hide(1.0)
    maml(vectors())
    hide(2.0)
    kind, why = (ArithmeticError, "no such") if fails else (fm.StaleRecordingError, "is off by")
    with pytest.raises(kind, match=why):
        maml(vectors())
    for _ in range(3):
        with pytest.raises(RuntimeError, match="cannot be captured"):
            maml(vectors())


def test_a_check_without_memory_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """It is the check that needs it, not the step."""
    model = Unrecordable(3, 2).double()
    model.fails = torch.OutOfMemoryError("CUDA out of memory")
    maml = fm.MAML(model, 0.3, loss=F.mse_loss, executor="captured")
    hide(1.0)
    before = outcome(maml, vectors())
    hide(2.0)
    assert outcome(maml, vectors()).same_bits(before)
    assert [r.message for r in caplog.records if "could not be checked" in r.message]
    assert [r.uses.calls for r in recorded(maml)] == [2]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(("steady", "refusals"), [(True, 0), (False, 2), (False, 9)])
def test_another_recording_is_asked_again_where_runs_differ(
    steady: bool, refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kink tipped over: a new recording may be refused for the very same reason."""
    monkeypatch.setattr(spot_checks, "same_each_time", lambda flat: steady)
    maml = fm.MAML(Hiding(3, 2).double(), 0.3, loss=F.mse_loss, executor="captured")
    hide(1.0)
    maml(vectors())
    hide(1.1)  # as if the eager run had tipped over, and recordings do not
    executor, asked = maml._execute, []
    assert isinstance(executor, Captured)
    (kept,) = recorded(maml)

    def record(flat: object) -> Recording:
        asked.append(flat)
        if len(asked) <= refusals:
            raise UncapturableError("its replay differs")
        return kept

    monkeypatch.setattr(executor, "_record", record)
    if refusals < spot_checks.TRIES:
        maml(vectors())
        assert len(asked) == refusals + 1
        return
    with pytest.raises(fm.StaleRecordingError, match=r"is off by .* and its replay differs"):
        maml(vectors())
    assert len(asked) == spot_checks.TRIES


@pytest.mark.parametrize("scale", [1e160, 1e-170])
def test_differences_of_any_size_are_seen(scale: float) -> None:
    """Whose squares are no float64."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(output, target) * scale * hidden() / 1000

    maml = fm.MAML(nn.Linear(3, 2).double(), 0.0, loss=loss, executor="captured")
    hide(1.0)
    maml(vectors())
    hide(2.0)
    with pytest.raises(fm.StaleRecordingError, match=r"is off by 5.0e-01"):
        maml(vectors())


FACTORS = [1.0, torch.nan, torch.inf]


class Infinite(nn.Linear):
    """Its second output is multiplied by one of FACTORS."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.stack([y[..., 0], y[..., 1] * FACTORS[round(hidden() / 1000) - 1]], -1)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize(("before", "after"), [(0, 1), (0, 2), (1, 0), (2, 0)])
def test_what_is_no_number_differs_from_what_is_one(before: int, after: int) -> None:
    """NaN is larger than nothing, and no share of infinity is large."""
    maml = fm.MAML(Infinite(3, 2).double(), 0.3, loss=F.mse_loss, executor="captured")
    hide(before + 1)
    maml.evaluate(vectors())
    hide(after + 1)
    with pytest.raises(fm.StaleRecordingError, match="the loss is off by inf"):
        maml.evaluate(vectors())


def test_outputs_of_any_dtype() -> None:
    class Many(Hiding):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = nn.Linear.forward(self, x)
            much = torch.full_like(y, hidden()) > 1500
            kinds = (torch.bool, torch.int32, torch.uint16, torch.float16, torch.complex64)
            return {"y": y} | {str(kind): much.to(kind) for kind in kinds}

    def loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return F.mse_loss(outputs["y"], targets)

    maml = fm.MAML(Many(3, 2).double(), 0.3, loss=loss, executor="captured")
    hide(1.0)
    for _ in range(3):
        maml(vectors())
    hide(2.0)
    with pytest.raises(fm.StaleRecordingError, match="an output of the model is off by"):
        maml(vectors())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_task_without_a_number_hides_no_other(bad: float) -> None:
    episodes = vectors()
    episodes.query.inputs[0, 0] = bad
    maml = fm.MAML(Hiding(3, 2).double(), 0.3, loss=F.mse_loss, executor="captured")
    hide(1.0)
    for _ in range(3):
        maml.evaluate(episodes)
    hide(1.001)
    with pytest.raises(fm.StaleRecordingError, match=r"is off by [^i]"):
        maml.evaluate(episodes)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [fm.gradients.Unrolled(), fm.gradients.MixedMode()])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_kinks_of_float32_are_no_difference(backend: str, gradient: fm.gradients.Unrolled) -> None:
    torch.manual_seed(0)
    model = fm.models.conv4(3, filters=8, pool="max", image_size=16)
    maml = fm.MAML(
        model, 0.4, steps=2, loss=F.cross_entropy, executor="captured", backend=backend,
        gradient=gradient,
    )  # fmt: skip
    for _ in range(9):
        images = [torch.randn(4, 6, 1, 16, 16).round() / 2 for _ in range(2)]  # many ties
        labels = torch.arange(3).repeat(4, 2)
        maml(fm.Episodes(*(fm.Batch(x, labels) for x in images))).loss.backward()
        with torch.no_grad():
            for p in maml.parameters():
                p -= 0.1 * p.grad / p.grad.norm().clamp(min=1e-6)
        maml.zero_grad()
    assert [r.uses.calls for r in recorded(maml)] == [9]


def test_what_a_model_prints_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Printing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            print("forward")
            return super().forward(x)

    captured, _ = pair(lambda: Printing(3, 2))
    outcome(captured, vectors())
    capsys.readouterr()
    for _ in range(4):
        outcome(captured, vectors())
    assert not capsys.readouterr().out
