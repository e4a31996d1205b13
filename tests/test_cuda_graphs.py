"""CUDA graphs of recordings: on a GPU, and by a stand-in that replays on the CPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from problems import PROBLEMS, RULES, meta_gradient, relative
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine import capture, cuda_graph
from fastmaml.engine.tape import UncapturableError

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
gpu = [pytest.param("cuda", marks=on_a_gpu)]


# ---- a stand-in ----


class Stream:
    """What a stream is asked; the current one is noted."""

    current: Any = "default"

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...


class Event:
    def record(self, stream: Any) -> None: ...


class Generator:
    """A CUDA generator takes a capture that failed for going on, until it is given a state."""

    state = "idle"

    def clone_state(self) -> str:
        return self.state

    def graphsafe_set_state(self, state: str) -> None:
        Generator.state = state


class Graph:
    """Between begin and end it notes the function's run; a replay runs it again.

    Attributes:
        refuses: raise in the capture, and at its end, as CUDA does.
        wrong: what a replay adds.
    """

    refuses = False
    wrong = 0.0
    captures = 0
    recording: set[Any] = set()  # noqa: RUF012  # pools that the allocator gives memory from
    function: Callable[..., list[Tensor]]

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        if pool in Graph.recording:
            raise RuntimeError(f"beginAllocateToPool: already recording to mempool_id {pool}")
        Graph.recording.add(pool)
        Graph.captures += 1
        Generator.state, self.pool = "capturing", pool

    def capture_end(self) -> None:
        if self.refuses:
            raise RuntimeError("operation failed due to a previous error during capture")
        Generator.state = "idle"
        Graph.recording.remove(self.pool)

    def replay(self) -> None:
        for x, y in zip(self.outputs, self.run(*self.inputs), strict=True):
            x.copy_(y + self.wrong if y.is_floating_point() else y)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Graph]]:
    """Recordings on the CPU become graphs, of the stand-in."""

    @contextmanager
    def stream(of: Any) -> Iterator[None]:
        before, Stream.current = Stream.current, of
        try:
            yield
        finally:
            Stream.current = before

    @contextmanager
    def device(of: Any) -> Iterator[None]:
        yield

    def captured(function: Any, inputs: list[Tensor], room: Any) -> Any:
        def run(*given: Tensor) -> list[Tensor]:
            if Generator.state == "capturing" and Graph.refuses:
                raise RuntimeError("operation not permitted when stream is capturing")
            return function(*given)

        graph, outputs = real(run, inputs, room)
        graph.run, graph.inputs, graph.outputs = function, inputs, outputs
        return graph, outputs

    real, pools = cuda_graph._captured, [(0, i) for i in range(9)]
    Graph.recording.clear()
    monkeypatch.setattr(cuda_graph, "_captured", captured)
    monkeypatch.setattr(capture, "has_graphs", lambda device: True)
    for name, value in {
        "Stream": Stream, "stream": stream, "Event": Event, "CUDAGraph": Graph, "device": device,
        "current_stream": Stream, "graph_pool_handle": pools.pop, "synchronize": lambda: None,
        "empty_cache": lambda: None, "default_generators": [Generator()],
        "current_device": lambda: 0,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    ended = lambda index, pool: Graph.recording.remove(pool)  # noqa: E731
    for name, value in {
        "_cuda_endAllocateToPool": ended, "_cuda_releasePool": lambda index, pool: None,
        "_host_emptyCache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch._C, name, value, raising=False)
    for name, start in {"refuses": False, "wrong": 0.0, "captures": 0}.items():
        monkeypatch.setattr(Graph, name, start)
    monkeypatch.setattr(Generator, "state", "idle")
    yield Graph
    assert Stream.current == "default", "the stream of a capture is not the current one afterwards"
    assert Generator.state == "idle", "a generator takes the capture for going on"
    assert not Graph.recording, "an allocator takes the capture for going on"


def maml_of(**options: Any) -> tuple[fm.MAML, fm.Episodes]:
    problem = next(p for p in PROBLEMS if p.name == "conv")
    return problem.maml(RULES["adam"](), **options), problem.episodes


def test_a_graph_gives_what_was_recorded_and_reads_weights_live(graphs: type[Graph]) -> None:
    maml, episodes = maml_of(executor="captured")
    eager, _ = maml_of(executor="eager")
    for _ in range(3):
        assert relative(meta_gradient(maml, episodes), meta_gradient(eager, episodes)) < 1e-9
        with torch.no_grad():
            for a, b in zip(maml.parameters(), eager.parameters(), strict=True):
                b.copy_(a.mul_(1.1))
    assert graphs.captures == 1


def test_a_refusal_is_kept_and_told(
    graphs: type[Graph], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs.refuses = True
    maml, episodes = maml_of()
    eager, _ = maml_of(executor="eager")
    with caplog.at_level(logging.WARNING, "fastmaml"):
        for _ in range(3):
            assert relative(meta_gradient(maml, episodes), meta_gradient(eager, episodes)) < 1e-9
    assert graphs.captures == 1
    why = "CUDA refuses to capture it: operation not permitted when stream is capturing"
    assert [r.getMessage() for r in caplog.records if why in r.getMessage()]
    maml.explain(episodes)
    assert (
        f"executor: eager, as this meta-step cannot be captured: {why}" in capsys.readouterr().out
    )
    required, _ = maml_of(executor="captured")
    with pytest.raises(RuntimeError, match=why):
        required(episodes)


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


@pytest.mark.parametrize("noise", [1e-9, 1e-3])
def test_what_adds_in_another_order_is_no_difference_and_what_draws_is_one(
    noise: float, graphs: type[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As atomics do, which the first inner step of Adam makes large where gradients are tiny."""

    def unsteady(self: Graph) -> None:
        for x, y in zip(self.outputs, self.run(*self.inputs), strict=True):
            x.copy_(y * (1 + noise * torch.randn(y.shape)) if y.is_floating_point() else y)

    monkeypatch.setattr(Graph, "replay", unsteady)
    monkeypatch.setattr(capture, "on_the_cpu", lambda flat: False)
    maml, episodes = maml_of(executor="captured")
    torch.manual_seed(0)
    if noise < 1e-6:
        assert maml(episodes).loss.isfinite()
    else:
        with pytest.raises(RuntimeError, match="its replay differs"):
            maml(episodes)


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


# ---- on a GPU ----


class Inverse(nn.Module):
    """Its inverse is checked on the host, which a capture does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3) + 0.1 * torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.linalg.inv(self.weight)


@pytest.mark.parametrize("device", gpu)
def test_what_cuda_refuses_runs_eagerly_and_harms_nothing(device: str) -> None:
    torch.manual_seed(0)
    model, x = Inverse().double(), torch.randn(2, 4, 3, dtype=torch.float64)
    episodes = fm.Episodes(fm.Batch(x, x), fm.Batch(x, x))
    on_cpu = meta_gradient(fm.MAML(model, 0.1, loss=F.mse_loss, executor="eager"), episodes)
    maml, there = fm.MAML(model.to(device), 0.1, loss=F.mse_loss), episodes.to(device)
    stream = torch.cuda.current_stream()
    for _ in range(3):
        assert relative(meta_gradient(maml, there).cpu(), on_cpu) < 1e-9
    assert torch.cuda.current_stream() == stream
    torch.cuda.manual_seed(1)
    assert torch.rand(3, device=device).isfinite().all()
    other, episodes = maml_of(executor="captured")
    eager, _ = maml_of(executor="eager")
    found = meta_gradient(other.to(device), episodes.to(device))
    assert relative(found.cpu(), meta_gradient(eager, episodes)) < 1e-9


@pytest.mark.parametrize("device", gpu)
def test_a_failed_capture_leaves_streams_and_generators(device: str) -> None:
    room = cuda_graph.GraphRoom(torch.device(device, torch.cuda.current_device()))
    x = torch.ones(3, device=device)

    def waits(x: Tensor) -> list[Tensor]:
        return [x * x.sum().item()]

    stream = torch.cuda.current_stream()
    with pytest.raises(UncapturableError, match="CUDA refuses to capture it"):
        cuda_graph.CudaGraph(waits, [x], room)
    assert torch.cuda.current_stream() == stream
    torch.cuda.manual_seed(3)
    a = torch.rand(5, device=device)
    torch.cuda.manual_seed(3)
    assert torch.equal(a, torch.rand(5, device=device))
    graph = cuda_graph.CudaGraph(lambda x: [2 * x], [x.clone()], room)
    assert torch.equal(graph(x + 1)[0], 2 * (x + 1))


@pytest.mark.parametrize("device", gpu)
def test_graphs_that_share_memory_in_any_order_and_on_any_stream(device: str) -> None:
    room = cuda_graph.GraphRoom(torch.device(device, torch.cuda.current_device()))

    def deep(factor: float) -> Callable[..., list[Tensor]]:
        def run(x: Tensor) -> list[Tensor]:
            for _ in range(20):
                x = (x @ x.mT / len(x)).tanh() * factor
            return [x, x.sum(1)]

        return run

    x = torch.randn(256, 256, device=device)
    functions = [deep(0.9), deep(1.1)]
    made = [cuda_graph.CudaGraph(f, [x.clone()], room) for f in functions]
    streams = [torch.cuda.Stream() for _ in range(3)]
    expected, found = [], []
    for i in range(12):
        y = x + i
        expected.append(functions[i % 2](y))
        torch.cuda.synchronize()
        with torch.cuda.stream(streams[i % 3]):
            found.append(made[i % 2](y))
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.parametrize("device", gpu)
def test_a_capture_beside_a_thread_that_uses_the_device(device: str) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def busy() -> None:
        try:
            while not stop.is_set():
                torch.randn(300, 300, device=device).sum().item()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        maml, episodes = maml_of(executor="captured")
        found = meta_gradient(maml.to(device), episodes.to(device))
    finally:
        stop.set()
        thread.join()
    assert not errors
    eager, _ = maml_of(executor="eager")
    assert relative(found.cpu(), meta_gradient(eager, episodes)) < 1e-9


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("device", gpu)
def test_a_replayed_meta_step_does_not_wait_for_the_device(device: str) -> None:
    maml, episodes = maml_of(executor="captured", check_finite=False, spot_checks=False)
    maml, episodes = maml.to(device), episodes.to(device)
    maml(episodes).loss.backward()
    try:
        torch.cuda.set_sync_debug_mode("error")
        maml(episodes).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
