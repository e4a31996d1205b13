"""Second derivatives for a learner that is called and adapted by hand.

Its loop differentiates the inner gradient, which some of PyTorch's kernels cannot (fused attention,
cuDNN's recurrent layers) and one does wrongly (weight normalisation). Inside the meta-step
`Routing` stands in for them; here only those stand-ins are active, and nothing else changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from fastmaml.engine.routing.bias_alone import PLACES, bias_alone, without_bias
from fastmaml.engine.routing.decompositions import ALWAYS, weight_norm
from fastmaml.engine.routing.mode import unhidden, without_cudnn

T = TypeVar("T")


def called(
    module: nn.Module, second_order: bool, function: Callable[..., T], *args: Any, **kwargs: Any
) -> T:
    """``function(*args, **kwargs)``, which runs a learner's module, or a method of it.

    Args:
        module: whose parameters are results of autograd where it is a learner's.
        second_order: whether its inner gradients are to be differentiated.
        function: the module, or a method of it.
        args, kwargs: for it.
    """
    wanted = second_order and torch.is_grad_enabled()
    if not wanted or all(p.is_leaf for p in module.parameters()):
        return function(*args, **kwargs)
    with SecondDerivatives():
        return function(*args, **kwargs)


class SecondDerivatives(TorchFunctionMode):
    """Active while a learner's model runs."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what has its second derivative."""
        stand_in = _STAND_INS.get(func)
        if stand_in is None:
            return func(*args, **(kwargs or {}))
        return stand_in(self, func, args, kwargs or {})


def _by_formula(mode: SecondDerivatives, func: Any, args: Any, kwargs: Any) -> Any:
    return ALWAYS[func](*args, **kwargs)


def _bias_apart(mode: SecondDerivatives, func: Any, args: Any, kwargs: Any) -> Any:
    bias = bias_alone(func, args, kwargs)
    if bias is None:
        return func(*args, **kwargs)
    args, kwargs = without_bias(func, args, kwargs)
    return func(*args, **kwargs) + bias


def _attention(mode: SecondDerivatives, func: Any, args: Any, kwargs: Any) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return func(*args, **kwargs)


def _multi_head_attention(mode: SecondDerivatives, func: Any, args: Any, kwargs: Any) -> Any:
    with mode:
        return unhidden(func)(*args, **kwargs)


def _recurrent(mode: SecondDerivatives, func: Any, args: Any, kwargs: Any) -> Any:
    with without_cudnn():
        return func(*args, **kwargs)


_STAND_INS: dict[Any, Callable[[SecondDerivatives, Any, Any, Any], Any]] = {
    **dict.fromkeys(ALWAYS, _by_formula),
    **dict.fromkeys(PLACES, _bias_apart),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
}


class _Parametrization(_WeightNorm):
    """`torch.nn.utils.parametrizations.weight_norm`'s, whose second derivative is right."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return weight_norm(weight_v, weight_g, self.dim)


class _Hook(WeightNorm):
    """`torch.nn.utils.weight_norm`'s, whose second derivative is right."""

    def compute_weight(self, module: nn.Module) -> Tensor:
        g, v = (getattr(module, f"{self.name}_{part}") for part in "gv")
        return weight_norm(v, g, self.dim)


def written_out(module: nn.Module) -> None:
    """Exchange the weight normalisation in a copy of a module tree, however it is called.

    Args:
        module: changed in place; its modules are its own, what they refer to need not be.
    """
    for owner in module.modules():
        if type(owner) is _WeightNorm:
            owner.__class__ = _Parametrization
        hooks = owner._forward_pre_hooks
        if any(type(hook) is WeightNorm for hook in hooks.values()):
            owner._forward_pre_hooks = OrderedDict((k, _exchanged(h)) for k, h in hooks.items())


def _exchanged(hook: Any) -> Any:
    return _Hook(hook.name, hook.dim) if type(hook) is WeightNorm else hook
