"""CUDA graphs of recordings, by a stand-in that replays on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_stand_in import Graph, maml_of, stand_in
from problems import meta_gradient, relative
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording import captured, cuda_graph, spot_checks
from fastmaml.engine.recording.tape import UncapturableError


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Graph]]:
    with stand_in(monkeypatch) as graph:
        yield graph


def test_a_graph_gives_what_was_recorded_and_reads_weights_live(graphs: type[Graph]) -> None:
    maml, episodes = maml_of(executor="captured")
    eager, _ = maml_of(executor="eager")
    for _ in range(3):
        assert relative(meta_gradient(maml, episodes), meta_gradient(eager, episodes)) < 1e-9
        with torch.no_grad():
            for a, b in zip(maml.parameters(), eager.parameters(), strict=True):
                b.copy_(a.mul_(1.1))
    assert graphs.captures == 1


def test_a_refusal_is_kept_and_told(graphs: type[Graph], caplog: pytest.LogCaptureFixture) -> None:
    graphs.refuses = True
    maml, episodes = maml_of()
    eager, _ = maml_of(executor="eager")
    with caplog.at_level(logging.WARNING, "fastmaml"):
        for _ in range(3):
            assert relative(meta_gradient(maml, episodes), meta_gradient(eager, episodes)) < 1e-9
    assert graphs.captures == 1
    why = "CUDA refuses to capture it: operation not permitted when stream is capturing"
    assert [r.getMessage() for r in caplog.records if why in r.getMessage()]
    reason = f"executor: eager, as this meta-step cannot be captured: {why}"
    assert reason in str(maml.explain(episodes))
    required, _ = maml_of(executor="captured")
    with pytest.raises(RuntimeError, match=why):
        required(episodes)


@pytest.mark.slow
def test_after_a_refusal_others_are_captured(graphs: type[Graph]) -> None:
    maml, episodes = maml_of()
    eager, _ = maml_of(executor="eager")
    for refuses, tasks in ((True, 3), (False, 2), (True, 1), (False, 2)):
        graphs.refuses = refuses
        part = episodes[:tasks]
        assert relative(meta_gradient(maml, part), meta_gradient(eager, part)) < 1e-9
    assert graphs.captures == 3
    kept = maml._execute._kept.values()
    assert sorted(type(found).__name__ for found in kept) == [
        "Recording",
        *["UncapturableError"] * 2,
    ]
    for found in kept:
        if isinstance(found, UncapturableError):
            assert found.__traceback__ is None, "it holds all that was recorded"
            assert found.__cause__ is None


def test_numbers_of_the_host_are_read_live(graphs: type[Graph]) -> None:
    """A graph would keep those that it was captured with."""
    scale = torch.tensor(2.0, dtype=torch.float64)

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x) * scale
            return y + torch.tensor([1.0, torch.nan], dtype=torch.float64).nan_to_num(2.0)

    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    episodes = fm.Episodes(fm.Batch(x, x[..., :2]), fm.Batch(x, x[..., :2]))
    model = Scaled(3, 2).double()
    maml, eager = (
        fm.MAML(model, 0.1, loss=F.mse_loss, executor=e, spot_checks=False)
        for e in ("captured", "eager")
    )
    captures = []
    for value in (2.0, 2.0, 3.0, 3.0):
        scale.fill_(value)
        assert relative(meta_gradient(maml, episodes), meta_gradient(eager, episodes)) < 1e-9
        captures.append(graphs.captures)
    assert captures[0] == captures[1] < captures[2] == captures[3]


def test_what_is_on_another_device_is_refused(
    graphs: type[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of the host is a kernel's argument, which a graph keeps."""

    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    monkeypatch.setattr(captured, "is_elsewhere", lambda x, device: x.dim() == 0)
    maml = fm.MAML(Scaled(), 0.1, loss=F.mse_loss, executor="captured")
    x = torch.randn(2, 4, 3)
    episodes = fm.Episodes(fm.Batch(x, x[..., :2]), fm.Batch(x, x[..., :2]))
    with pytest.raises(RuntimeError, match=r"a buffer.* is on another device.*maml.to\(device\)"):
        maml(episodes)
    assert not graphs.captures
    fm.MAML(nn.Linear(3, 2), 0.1, loss=F.mse_loss, executor="captured")(episodes)
    assert graphs.captures == 1, "without the buffer it is captured"


def test_graphs_wait_for_each_other(graphs: type[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """They share memory, and each its inputs with all its calls, whatever stream these are on."""
    real = cuda_graph._copy

    def copy(into: Any, of: Any) -> None:
        graphs.told.append(("copies",))
        real(into, of)

    monkeypatch.setattr(cuda_graph, "_copy", copy)
    maml, episodes = maml_of(executor="captured", spot_checks=False)
    maml(episodes)
    (room,) = maml._execute._rooms.values()
    told = [what for what in graphs.told if what[0] != "copies"]
    warm = told[: told.index(("synchronizes",))]
    assert ("waits", room.stream, room.done) in warm, "another graph may run with its workspaces"
    graphs.told.clear()
    maml(episodes)
    waits, *between, records = graphs.told
    stream = waits[1]
    assert waits == ("waits", stream, room.done)
    assert between == [("copies",), ("replays",), ("copies",)]
    assert records == ("records", room.done, stream)


def test_captures_keep_no_autograd_graph(
    graphs: type[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold every intermediate result for as long as the recording lives."""
    teacher = nn.Linear(3, 2).double()  # its parameters require gradients

    class Student(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = teacher(x)
            return super().forward(x) - target

    maml = fm.MAML(Student(3, 2).double(), 0.1, loss=F.mse_loss, executor="captured")
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    maml(fm.Episodes(fm.Batch(x, x[..., :2]), fm.Batch(x, x[..., :2])))
    (recording,) = maml._execute._kept.values()
    assert not any(out.requires_grad for out in recording.run._outputs)


def test_a_graph_that_gives_something_else_is_refused(graphs: type[Graph]) -> None:
    graphs.wrong = 1e-2
    maml, episodes = maml_of(executor="captured")
    with pytest.raises(RuntimeError, match=r"its replay differs.*is off by"):
        maml(episodes)


def test_results_are_the_callers_own(graphs: type[Graph]) -> None:
    maml, episodes = maml_of(executor="captured", spot_checks=False)
    first = maml(episodes)
    kept = [x.clone() for x in (first.losses, first.outputs)]
    with torch.no_grad():
        next(maml.parameters()).mul_(2)
    maml(episodes)
    assert all(map(torch.equal, kept, (first.losses, first.outputs)))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("noise", [1e-9, 9e-7, 1e-3])
def test_what_adds_in_another_order_is_no_difference_and_what_draws_is_one(
    noise: float, graphs: type[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As atomics do, which the first inner step of Adam makes large where gradients are tiny."""

    def unsteady(self: Graph) -> None:
        for x, y in zip(self.outputs, self.run(*self.inputs), strict=True):
            x.copy_(y * (1 + noise * torch.randn(y.shape)) if y.is_floating_point() else y)

    monkeypatch.setattr(Graph, "replay", unsteady)
    for module in (captured, spot_checks):
        monkeypatch.setattr(module, "same_each_time", lambda flat: False)
    maml, episodes = maml_of(executor="captured")
    torch.manual_seed(0)
    if noise < 1e-6:
        for _ in range(16):  # the runs that recordings are held against are unsteady, too
            assert maml(episodes).loss.isfinite()
    else:
        with pytest.raises(RuntimeError, match="its replay differs"):
            maml(episodes)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("tipped", [2, 99])
def test_replays_that_tip_over_at_a_kink_are_run_again(
    tipped: int, graphs: type[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By far more than adding in another order is worth, so that none tells the other's noise."""
    replays = []

    def tipping(self: Graph) -> None:
        replays.append(self)
        off = 1e-2 if len(replays) <= tipped else 0.0
        for x, y in zip(self.outputs, self.run(*self.inputs), strict=True):
            x.copy_(y * (1 + off) if y.is_floating_point() else y)

    monkeypatch.setattr(Graph, "replay", tipping)
    monkeypatch.setattr(captured, "same_each_time", lambda flat: False)
    maml, episodes = maml_of(executor="captured", spot_checks=False)
    if tipped == 2:
        maml(episodes)
        assert len(replays) == 4, "two checks: of two replays and of one; and the call's own"
    else:
        with pytest.raises(RuntimeError, match="its replay differs"):
            maml(episodes)
        assert len(replays) == 2 * spot_checks.TRIES


def test_copies_are_one_call_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = torch._foreach_copy_

    def counted(into: list[Tensor], of: list[Tensor]) -> None:
        calls.append(len(into))
        real(into, of)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    of = [torch.ones(2), torch.arange(3), torch.ones(3), torch.zeros(0)]
    into = [torch.empty_like(x) for x in of]
    cuda_graph._copy(into, of)
    assert all(map(torch.equal, into, of))
    assert sorted(calls) == [1, 3]
