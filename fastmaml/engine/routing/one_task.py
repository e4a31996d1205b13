"""Which calls of a learner that is called by hand may reach the kernels.

Each runs as it comes, so that the kernels have to pay for themselves call by call: where that was
measured, on the CPU, from some size on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastmaml import ops
from fastmaml.engine.base import functorch

LEAST: Final = {
    "rows": 1 << 15,
    "rows, later": 1 << 10,
    "task_layer_norm": 1 << 16,
    "gelu": 1 << 16,
    "gelu_tanh": 1 << 16,
    "silu": 1 << 18,
    "task_attention": 1 << 21,
}
"""From so many results on (of attention: multiplications) the kernels are the faster; convolution
and BatchNorm sooner where they follow one of theirs, whose layout PyTorch's would not have."""

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def calls_of(backend: str | None, harmless: Callable[..., Any]) -> OneTaskCalls | None:
    """The calls of a pass that may go to the kernels; None where something watches functions.

    Args:
        backend: None for the best that there is on the CPU.
        harmless: see `OneTaskCalls`.
    """
    watched = any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())
    backend = "reference" if watched else backend or ops.default_backend("cpu")
    return None if backend == "reference" else OneTaskCalls(backend, harmless)


@final
class OneTaskCalls:
    """The calls of one forward pass.

    Args:
        backend: of the kernels.
        harmless: the one hook that modules may have whose calls are made one.

    Attributes:
        ahead: of the convolution or BatchNorm that runs next, which nobody else sees: of the first
            an empty tuple, of the second whether a ReLU follows, and whether max-pooling does.
    """

    def __init__(self, backend: str, harmless: Callable[..., Any]) -> None:
        self.backend, self.harmless = backend, harmless
        self.ahead: tuple[()] | tuple[bool, bool] | None = None

    @staticmethod
    def least(kind: str) -> int:
        """How large a call is at least."""
        return LEAST[kind]

    @staticmethod
    def free() -> bool:
        """Whether a graph is recorded, and nothing else is done with operations."""
        return (
            torch.is_grad_enabled()
            and torch._C._len_torch_dispatch_stack() == 0
            and functorch.maybe_current_level() is None
            and forward_ad._current_level < 0
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def take(self, op: str, *tensors: Tensor | None) -> bool:
        """Whether the kernels have it for these tensors, of which one is to be derived by."""
        given = [x for x in tensors if x is not None]
        return (
            any(x.requires_grad for x in given)
            and all(map(_usual, given))
            and ops.covers(op, self.backend, given)
            and self.free()
        )

    def made(self, layer: nn.Module, x: Any, *ahead: bool) -> tuple[Any, bool]:
        """A layer's result, and whether the kernels made it: then it is channels-last."""
        self.ahead = ahead  # type: ignore[assignment]  # of two lengths
        try:
            result = layer(x)
            return result, self.ahead is None
        finally:
            self.ahead = None


def _usual(x: Tensor) -> bool:
    return type(x) in _PLAIN and x.is_cpu and x.layout == torch.strided and not x.is_nested
