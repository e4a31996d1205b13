"""CUDA graphs on a GPU: captures, streams, generators."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from cuda_stand_in import maml_of
from problems import meta_gradient, relative
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording import cuda_graph
from fastmaml.engine.recording.tape import UncapturableError

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

gpu = [pytest.param("cuda", marks=pytest.mark.gpu)]


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
                x = x @ turned * factor
            return [x, x.sum(1)]

        return run

    x = torch.randn(1024, 1024, device=device)
    turned = torch.linalg.qr(torch.randn(1024, 1024, device=device))[0]
    functions = [deep(0.9), deep(1.1)]
    made = [cuda_graph.CudaGraph(f, [x.clone()], room) for f in functions]
    streams = [torch.cuda.Stream() for _ in range(3)]
    given = [x + i for i in range(12)]
    expected = [functions[i % 2](y) for i, y in enumerate(given)]
    torch.cuda.synchronize()
    found = []
    for i, y in enumerate(given):  # none has ended when the next is asked for
        with torch.cuda.stream(streams[i % 3]):
            found.append(made[i % 2](y))
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        for p, q in zip(a, b, strict=True):
            assert relative(p, q) < 1e-5
    assert relative(expected[0][0], expected[2][0]) > 0.01, "a replay of another call would show"


@pytest.mark.parametrize("device", gpu)
def test_a_capture_beside_a_thread_that_uses_the_device(device: str) -> None:
    """But its default generator: PyTorch takes every draw for one of the capture's."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def busy() -> None:
        try:
            while not stop.is_set():
                torch.ones(300, 300, device=device).sum().item()
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
