"""Which calls of a learner that is called by hand reach the kernels.

Each runs as it comes, so that the kernels have to pay for themselves call by call: where that was
measured, on the CPU, from some size on. All results have the layout that PyTorch's have. Between
convolution, normalisation, ReLU and pooling the kernels keep images channels-last: beside the last
result its channels-last twin is kept, which the next call takes unless the result was written to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastmaml import ops
from fastmaml.engine.base import functorch
from fastmaml.ops import one_task
from fastmaml.ops.one_task import Normalisation

LEAST: Final = {
    "task_conv2d": 1 << 15,
    "task_batch_norm": 1 << 15,
    "follows": 1 << 10,
    "task_layer_norm": 1 << 16,
    "gelu": 1 << 16,
    "gelu_tanh": 1 << 16,
    "silu": 1 << 18,
    "task_attention": 1 << 21,
}
"""From so many results on (of attention: multiplications) the kernels are the faster; convolution
and BatchNorm sooner where they follow one of theirs, with whose layout PyTorch's take longer."""

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def calls_of(modules: Iterable[nn.Module], backend: str | None) -> OneTaskCalls | None:
    """The calls of a pass of a model with these modules, if any may go to the kernels.

    None may where something else watches which functions run.

    Args:
        modules: all of the model's.
        backend: None for the best that there is on the CPU.
    """
    modes = _get_current_function_mode_stack()
    free = (
        all(type(mode) is DeviceContext for mode in modes)
        and torch._C._len_torch_dispatch_stack() == 0
        and functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
    backend = (backend or ops.default_backend("cpu")) if free else "reference"
    return None if backend == "reference" else OneTaskCalls(backend, modules)


@dataclass(frozen=True)
class Last:
    """The last result.

    Attributes:
        result: as the model has it.
        version: of it, which counts what is written to it.
        twin: the same, channels-last.
        how: it was normalised.
    """

    result: Tensor
    version: int
    twin: Tensor
    how: Normalisation | None = None


@final
class OneTaskCalls:
    """The calls of one forward pass.

    Args:
        backend: of the kernels.
        modules: of the model. If its convolutions are not normalised, they stay with PyTorch.
    """

    def __init__(self, backend: str, modules: Iterable[nn.Module]) -> None:
        self.backend = backend
        kinds = [type(m) for m in modules if type(m) is nn.Conv2d or _normalises(m)]
        norms = kinds.count(nn.BatchNorm2d)
        self.normalises = norms > 0
        self.convolves = norms > 0 and 2 * norms >= len(kinds)
        self.last: Last | None = None
        self.unseen_next = False
        self._ahead: tuple[bool, bool] | None = None

    @staticmethod
    def least(kind: str, follows: bool = False) -> int:
        """How large a call is at least; `follows` says that its input is a result of theirs."""
        return LEAST["follows" if follows else kind]

    def take(self, op: str, *tensors: Tensor | None) -> bool:
        """Whether the kernels have it for these tensors, of which one is to be derived by."""
        given = [x for x in tensors if x is not None]
        return (
            torch.is_grad_enabled()
            and any(x.requires_grad for x in given)
            and all(type(x) in _PLAIN and x.is_cpu for x in given)
            and ops.covers(op, self.backend, given)
        )

    def worth(self, layer: nn.Module, x: Any) -> bool:
        """Whether to look closely at a row of modules that begins so."""
        if self.last is not None or type(x) is not Tensor or x.ndim != 4:
            return True
        channels = layer.out_channels if isinstance(layer, nn.Conv2d) else x.shape[1]
        return len(x) * channels * x.shape[2] * x.shape[3] >= LEAST["task_conv2d"]

    def unseen(self, layer: nn.Module, x: Any) -> Any:
        """The result of a convolution that only `normalised` is given: it may be channels-last."""
        self.unseen_next = True
        try:
            return layer(x)
        finally:
            self.unseen_next = False

    def normalised(self, layer: nn.Module, x: Any, relu: bool, pool: bool) -> tuple[Any, bool]:
        """The result of a BatchNorm, and whether what follows it was done as well.

        Args:
            layer: the BatchNorm.
            x: its input.
            relu: whether a ReLU follows, and nobody sees what is between.
            pool: whether max-pooling follows that.
        """
        self._ahead, last = (relu, pool), self.last
        try:
            result = layer(x)
            done = self._ahead is None
        finally:
            self._ahead = None
        of_theirs = last is not None and last.twin is x
        return result.contiguous() if of_theirs and not done else result, done

    def has_twin(self, x: Tensor) -> bool:
        """Whether it is the last result."""
        return self.last is not None and _is_last(x, self.last)

    def twin(self, x: Tensor) -> Tensor:
        """The channels-last twin of the last result, or what is given."""
        last = self.last
        return last.twin if last is not None and _is_last(x, last) else x

    def how(self, x: Any) -> Normalisation | None:
        """How `x` was normalised, if it is the last result and was."""
        last = self.last
        return last.how if last is not None and _is_last(x, last) else None

    def made(self, twin: Tensor, how: Normalisation | None = None) -> Tensor:
        """The result of which this is the twin."""
        result = twin if self.unseen_next else one_task.channels_first(twin)
        self.last = Last(result, result._version, twin, how)
        return result

    def again(self, how: Normalisation, over: Tensor | None = None) -> Tensor:
        """The last result, normalised anew, with what follows; `over`: that was written over it."""
        twin = one_task.batch_norm(self.backend, how)[0]
        if over is None:
            return self.made(twin, how)
        self.last = Last(over, over._version, twin, how)
        return over

    def first(self, how: Normalisation) -> tuple[Tensor, Tensor, Tensor]:
        """The batch normalised, with all that was asked for ahead; its mean and 1/std."""
        if self._ahead is not None:
            relu, pool = self._ahead
            if not pool or min(how.x.shape[2:]) > 1:
                how, self._ahead = replace(how, relu=relu, pool=pool), None
        y, mean, scale = one_task.batch_norm(self.backend, how)
        return self.made(y, how), mean, scale


def _normalises(module: nn.Module) -> bool:
    return type(module) is nn.BatchNorm2d and (module.training or module.running_mean is None)


def _is_last(x: Any, last: Last) -> bool:
    return last.result is x and x._version == last.version
