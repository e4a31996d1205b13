"""What is different while a learner runs that is called and adapted by hand.

Its loop differentiates the inner gradient, which some of PyTorch's kernels cannot (fused attention,
cuDNN's recurrent layers) and one does wrongly (weight normalisation). Inside the meta-step
`Routing` stands in for them; here only those stand-ins are active.

Where our kernels are the faster they stand in for PyTorch's, too (`one_task`).

Its parameters are exchanged at every inner step, so that a region of `torch.utils.checkpoint` would
run again with later ones, in the mode of that time. What runs in such regions is kept instead.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from fastmaml.engine.routing.bias_alone import PLACES, bias_alone, without_bias
from fastmaml.engine.routing.decompositions import ALWAYS, weight_norm
from fastmaml.engine.routing.mode import Routing, unhidden, without_cudnn
from fastmaml.engine.routing.one_task import OneTaskCalls, calls_of
from fastmaml.engine.routing.one_task_calls import routed
from fastmaml.engine.routing.region_layers import layers_of_regions, runs_its_own
from fastmaml.engine.routing.torch_regions import inside, refuse_reentrant, set_aside

T = TypeVar("T")


def called(
    module: nn.Module, second_order: bool, function: Callable[..., T], *args: Any, **kwargs: Any
) -> T:
    """`called_on` the best kernels that there are."""
    return called_on(None, module, second_order, function, *args, **kwargs)


def called_on(
    backend: str | None,
    module: nn.Module,
    second_order: bool,
    function: Callable[..., T],
    *args: Any,
    **kwargs: Any,
) -> T:
    """``function(*args, **kwargs)``, which runs a learner's module, or a method of it.

    Args:
        backend: of the kernels, "reference" for none; None for the best that there is.
        module: whose parameters may be exchanged before its derivatives are wanted.
        second_order: whether inner gradients by parameters that are results of autograd are to be
            differentiated.
        function: the module, or a method of it.
        args, kwargs: for it.

    Raises:
        ValueError: the module uses `torch.utils.checkpoint` with ``use_reentrant=True``.
    """
    if not torch.is_grad_enabled() or _watched():
        return function(*args, **kwargs)
    modules = list(module.modules())
    if function is module and not inside() and all(map(_is_plain, modules)):
        return function(*args, **kwargs)
    original = is_original(module)
    calls = None if original else calls_of(backend, _refuse_alone)
    mode = ByHand(second_order and not original, calls)
    with layers_of_regions(modules, _kept), mode:
        return function(*args, **kwargs)


_PLAIN = frozenset(
    (nn.Sequential, nn.Linear, nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)
)
"""Modules in which there is nothing to stand in for: a small model's calls take half as long."""


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) in _PLAIN
        and runs_its_own(module)
        and not (module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
        and all(hook is _refuse_alone for hook in module._forward_pre_hooks.values())
    )


def is_original(module: nn.Module) -> bool:
    """Whether all parameters are a user's own, and none results of autograd, as a clone's are."""
    return all(p.is_leaf for p in module.parameters())


def attribute(module: nn.Module, name: str, call: Callable[..., Any]) -> Any:
    """An attribute of a learner's module, for the learner.

    Args:
        module: whose attribute.
        name: of it.
        call: ``call(method, *args, **kwargs)`` runs methods that a user's class has.
    """
    value = getattr(module, name)
    own = isinstance(value, MethodType) and value.__self__ is module
    return partial(call, value) if own and not hasattr(nn.Module, name) else value


@final
class ByHand(TorchFunctionMode):
    """Active while a learner's model runs.

    Args:
        second_order: whether what has no second derivative, or a wrong one, is exchanged.
        calls: which go to the kernels; None for none.
    """

    def __init__(self, second_order: bool, calls: OneTaskCalls | None = None) -> None:
        super().__init__()
        self.second_order, self.kernel_calls = second_order, calls

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what has its second derivative, and keep what that needs."""
        refuse_reentrant(func, sys._getframe(1))
        if inside():
            with set_aside():
                return self._run(func, args, kwargs or {})
        return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if self.kernel_calls is not None:
            result = routed(self.kernel_calls, func, args, kwargs)
            if result is not NotImplemented:
                return result
        stand_in = _STAND_INS.get(func) if self.second_order else None
        return func(*args, **kwargs) if stand_in is None else stand_in(self, func, args, kwargs)


def only_within(module: nn.Module) -> None:
    """Refuse regions of `torch.utils.checkpoint` where a learner's part is called by itself.

    Args:
        module: a copy of a module tree; changed in place.
    """
    for owner in module.modules():
        hooks = owner._forward_pre_hooks
        if _refuse_alone not in hooks.values():
            owner._forward_pre_hooks = OrderedDict(hooks)  # may be the original's
            owner.register_forward_pre_hook(_refuse_alone)


def _refuse_alone(module: nn.Module, inputs: Any) -> None:
    if inside() and not _watched():
        raise RuntimeError(
            f"torch.utils.checkpoint would run a learner's {type(module).__name__} again with the "
            "parameters of later inner steps. Call the learner itself, or a method of its model, "
            "where fastmaml keeps what such a region computes; or call this part without it."
        )


def _watched() -> bool:
    """Whether something of fastmaml's sees the functions that run, and sets regions aside."""
    modes = _get_current_function_mode_stack()
    return any(isinstance(mode, ByHand | Routing) for mode in modes)


def _kept(layer: Callable[..., T], *inputs: Any) -> T:
    return layer(*inputs)


def _by_formula(mode: ByHand, func: Any, args: Any, kwargs: Any) -> Any:
    return ALWAYS[func](*args, **kwargs)


def _bias_apart(mode: ByHand, func: Any, args: Any, kwargs: Any) -> Any:
    bias = bias_alone(func, args, kwargs)
    if bias is None:
        return func(*args, **kwargs)
    args, kwargs = without_bias(func, args, kwargs)
    return func(*args, **kwargs) + bias


def _attention(mode: ByHand, func: Any, args: Any, kwargs: Any) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return func(*args, **kwargs)


def _multi_head_attention(mode: ByHand, func: Any, args: Any, kwargs: Any) -> Any:
    with mode:
        return unhidden(func)(*args, **kwargs)


def _recurrent(mode: ByHand, func: Any, args: Any, kwargs: Any) -> Any:
    with without_cudnn():
        return func(*args, **kwargs)


_STAND_INS: dict[Any, Callable[[ByHand, Any, Any, Any], Any]] = {
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
