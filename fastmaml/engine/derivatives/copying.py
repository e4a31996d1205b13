"""A deep copy of a module, whatever tensors it keeps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastmaml.engine.base import functorch
from fastmaml.engine.base.storages import COMPRESSED
from fastmaml.engine.derivatives.sparse_constants import outside
from fastmaml.engine.model.buffers import forget_running_statistics
from fastmaml.rules.base import Tensors

M = TypeVar("M", bound=nn.Module)


def deep_copy(module: M) -> M:
    """`copy.deepcopy`, also of a module that keeps results of its last call.

    `copy.deepcopy` raises on tensors that autograd made: activations, and the weights that the
    hooks of `torch.nn.utils.weight_norm` leave behind. Of these the copy gets the numbers.

    Raises:
        TypeError: something that the module holds cannot be copied.
    """
    with _Copying():
        try:
            return copy.deepcopy(module)
        except TypeError as error:
            raise TypeError(
                f"the {type(module).__name__} cannot be copied by copy.deepcopy ({error}): keep "
                "what it is about (a generator, a file, a lock) outside of the model, give that a "
                "__deepcopy__ of its own, or use learner = maml.clone(); learner.adapt(loss)."
            ) from error


def adapted_copy(module: nn.Module, adapted: Tensors, own_statistics: bool) -> nn.Module:
    """A copy with one task's parameters.

    Args:
        module: not changed.
        adapted: ``[1, *shape]``, by name; others are as they were.
        own_statistics: whether normalisation layers go on using the batch at hand.
    """
    learner = deep_copy(module)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name in adapted:
                parameter.copy_(adapted[name].squeeze(0))
    if own_statistics:
        forget_running_statistics(learner)
    return learner


class _Copying(TorchFunctionMode):
    """Copies those tensors that `Tensor.__deepcopy__` does not."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.clone and args[0].layout is not torch.strided:
            return func(args[0])  # a sparse parameter asks for its memory format to be kept
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        x, memo = args
        made = not x.is_leaf or functorch.is_functorch_wrapped_tensor(x)
        if not made and x.layout not in COMPRESSED and not x._is_zerotensor():
            return func(x, memo)
        if id(x) not in memo:
            memo[id(x)] = _numbers(x)
        return memo[id(x)]


def _numbers(x: Tensor) -> Tensor:
    """Of all tasks, where a call under vmap left them."""
    x = functorch.unwrapped(x)
    return outside(lambda: x.detach().clone().requires_grad_(x.is_leaf and x.requires_grad))
