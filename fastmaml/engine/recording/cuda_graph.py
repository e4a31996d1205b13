"""A recorded meta-step as one CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmaml.engine.recording.tape import UncapturableError

WARM_UPS = 3
"""Runs before the capture, in which kernels choose their configurations and libraries set up."""

Function = Callable[..., list[Tensor]]


def has_graphs(device: torch.device) -> bool:
    """Whether what is recorded there becomes a graph."""
    return device.type == "cuda"


def is_elsewhere(x: Tensor, device: torch.device) -> bool:
    """Whether a graph of that device would keep the numbers that it has now."""
    return x.device != device


class GraphRoom:
    """What graphs that run one after another share: a stream, memory, and whose turn it is.

    Each keeps only its results in that memory, so that together they need what the largest does.

    Args:
        device: of all their tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()
            self.memory = torch.cuda.graph_pool_handle()
            self.done = torch.cuda.Event()
            self._failed: list[torch.cuda.CUDAGraph] = []

    def leave(self, graph: torch.cuda.CUDAGraph) -> None:
        """Go on after a capture that failed, with memory of its own.

        Until torch 2.12 its end raises before the allocator has left it: without this the next
        capture finds one underway, and idle memory is never given back.
        """
        index = self.device.index or 0
        with contextlib.suppress(RuntimeError):  # from 2.12 on it has left
            torch._C._cuda_endAllocateToPool(index, self.memory)
            torch._C._cuda_releasePool(index, self.memory)
        self._failed.append(graph)  # allocators go on asking it
        self.memory = torch.cuda.graph_pool_handle()


class CudaGraph:
    """Replays a function of tensors on a CUDA device as one launch.

    A call copies its inputs to where the graph reads them, launches it, and copies the results.
    Calls on several streams wait for each other.

    Args:
        function: of tensors on one device, returns tensors; it must not wait for the device.
        inputs: of the kind that calls will have; they become the graph's own.
        room: which other graphs may share.

    Raises:
        UncapturableError: CUDA refuses to capture it. Streams and generators are as before.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], room: GraphRoom) -> None:
        self._inputs, self._room = list(inputs), room
        self._graph, self._outputs = _captured(function, self._inputs, room)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The function's results, in tensors of their own."""
        room = self._room
        with torch.cuda.device(room.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(room.done)
            _copy(self._inputs, inputs)
            self._graph.replay()
            found = [torch.empty_like(x) for x in self._outputs]
            _copy(found, self._outputs)
            room.done.record(stream)
        return found


def _copy(into: Sequence[Tensor], of: Sequence[Tensor]) -> None:
    """One launch a dtype: a list of several would be copied one by one."""
    lists: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for a, b in zip(into, of, strict=True):
        mine, theirs = lists.setdefault(a.dtype, ([], []))
        mine.append(a)
        theirs.append(b)
    for mine, theirs in lists.values():
        torch._foreach_copy_(mine, theirs)


def _captured(
    function: Function, inputs: list[Tensor], room: GraphRoom
) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The graph, and where it leaves its results."""
    with torch.cuda.device(room.device):
        current = torch.cuda.current_stream()
        room.stream.wait_stream(current)
        room.stream.wait_event(room.done)  # graphs of it may run, with this stream's workspaces
        with torch.cuda.stream(room.stream):
            for _ in range(WARM_UPS):
                function(*inputs)
        current.wait_stream(room.stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # blocks that lie idle are of no use to the graph's memory
        torch._C._host_emptyCache()  # it keeps the pool of graphs that are gone, which none can use
        return _of_one_run(function, inputs, room)


def _of_one_run(
    function: Function, inputs: list[Tensor], room: GraphRoom
) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """By hand: where a capture fails, `torch.cuda.graph` leaves its own stream the current one."""
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        with torch.cuda.stream(room.stream):
            # Only this thread's calls must be of a kind that can be captured.
            graph.capture_begin(pool=room.memory, capture_error_mode="thread_local")
            try:
                outputs = function(*inputs)
            finally:
                graph.capture_end()
    except Exception as error:
        generator.graphsafe_set_state(before)  # else it takes the capture for going on
        room.leave(graph)
        if isinstance(error, torch.OutOfMemoryError):
            raise
        why = error.__context__ or error  # what came first: its end fails, too
        if isinstance(why, torch.OutOfMemoryError):
            raise why from None
        if not isinstance(error, RuntimeError):
            raise
        raise UncapturableError(f"CUDA refuses to capture it: {why}") from why
    return graph, outputs
