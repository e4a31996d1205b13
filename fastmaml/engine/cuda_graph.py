"""A recorded meta-step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmaml.engine.tape import UncapturableError

WARM_UPS = 3
"""Runs before the capture, in which kernels choose their configurations and libraries set up."""


class CudaGraph:
    """Replays a function of tensors on a CUDA device as one launch.

    The first call runs the function a few times and captures it; later ones copy their inputs to
    where the graph reads them and launch it. Memory: the graph keeps all that the function needs.

    Args:
        function: of tensors on one device, returns tensors; it must not wait for the device.

    Raises:
        UncapturableError: at the first call, if it does.
    """

    def __init__(self, function: Callable[..., list[Tensor]]) -> None:
        self.function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The function's results, in tensors of their own."""
        if self._graph is None:
            self._capture(inputs)
        else:
            torch._foreach_copy_(self._inputs, list(inputs))
        assert self._graph is not None
        self._graph.replay()
        return [x.clone() for x in self._outputs]

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [x.clone() for x in inputs]
        device = self._inputs[0].device
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self.function(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._outputs = self.function(*self._inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise UncapturableError(f"CUDA refuses to capture it: {error}") from error
        self._graph = graph
