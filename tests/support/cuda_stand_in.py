"""A stand-in for CUDA graphs, which replays on the CPU and notes what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from problems import PROBLEMS, RULES
from torch import Tensor

import fastmaml as fm
from fastmaml.engine.recording import captured, cuda_graph


class Stream:
    """What a stream is asked; the current one is noted."""

    current: Any = "default"

    def wait_stream(self, other: Any) -> None:
        Graph.told.append(("waits for all of", self, other))

    def wait_event(self, event: Any) -> None:
        Graph.told.append(("waits", self, event))


class Event:
    def record(self, stream: Any) -> None:
        Graph.told.append(("records", self, stream))


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
        told: what was done, in its order.
    """

    refuses = False
    wrong = 0.0
    captures = 0
    told: list[tuple[Any, ...]] = []  # noqa: RUF012
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
        Graph.told.append(("replays",))
        for x, y in zip(self.outputs, self.run(*self.inputs), strict=True):
            x.copy_(y + self.wrong if y.is_floating_point() else y)


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Graph]]:
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

    def synchronize() -> None:
        Graph.told.append(("synchronizes",))

    def graphed(function: Any, inputs: list[Tensor], room: Any) -> Any:
        def run(*given: Tensor) -> list[Tensor]:
            if Generator.state == "capturing" and Graph.refuses:
                raise RuntimeError("operation not permitted when stream is capturing")
            return function(*given)

        graph, outputs = real(run, inputs, room)
        graph.run, graph.inputs, graph.outputs = function, inputs, outputs
        return graph, outputs

    real, pools = cuda_graph._captured, [(0, i) for i in range(9)]
    Graph.recording.clear()
    Graph.told.clear()
    monkeypatch.setattr(cuda_graph, "_captured", graphed)
    monkeypatch.setattr(captured, "has_graphs", lambda device: True)
    for name, value in {
        "Stream": Stream, "stream": stream, "Event": Event, "CUDAGraph": Graph, "device": device,
        "current_stream": Stream, "graph_pool_handle": pools.pop, "synchronize": synchronize,
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
