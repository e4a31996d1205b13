"""Derivatives that code takes inside a pass, and hooks that it registers, whatever is active."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from fastmaml.engine.base import functorch

if TYPE_CHECKING:
    from fastmaml.engine.derivatives.own_derivatives import OwnDerivatives


_OBSERVERS = {"torch.utils.module_tracker", "torch.distributed._tools.mod_tracker"}
"""Modules of torch that would hook into backward passes only to note when they happen."""


def _requires_grad(mode: OwnDerivatives, func: Any, input: Tensor, *_: Any) -> bool:
    found = mode.below(input).requires_grad
    if found and (mode.batched or mode.forwards or mode.native):  # where hooks are refused
        return _asker() not in _OBSERVERS
    return found


def _asker() -> str:
    """The name of the module whose code made the call to torch that is being handled."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _module(frame).startswith("fastmaml."):
        frame = frame.f_back
    return _module(frame)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _mark(mode: OwnDerivatives, func: Any, input: Tensor, requires_grad: bool = True) -> Any:
    """`requires_grad_`, which libraries also call where no derivative is ever taken."""
    level = functorch.maybe_current_level()
    if level is None or level != mode.level or functorch.get_inplace_requires_grad_allowed():
        mode.keep_learned(input, requires_grad)
        return func(input, requires_grad)  # as ever, or by a transform of torch.func
    below = mode.below(input)
    if below.requires_grad == requires_grad:
        return input
    mode.keep_learned(input, requires_grad)
    if below is not input and not requires_grad:
        mode.alone("calls requires_grad_(False)")
    # Forward over reverse differentiates on a level of its own.
    outside = not mode.batched and functorch.maybe_get_level(input) != level
    if mode.forwards and outside:
        mode.not_forwards("marks an input with requires_grad_()")
    functorch.set_inplace_requires_grad_allowed(True)
    try:
        below.requires_grad_(requires_grad)
    finally:
        functorch.set_inplace_requires_grad_allowed(False)
    return input


def _register_hook(mode: OwnDerivatives, func: Any, input: Tensor, hook: Any) -> Any:
    """A hook is never called where nothing requires a gradient, as when a model is evaluated."""
    if not mode.below(input).requires_grad:
        return RemovableHandle(OrderedDict())
    if mode.forwards:
        mode.not_forwards("registers a hook on a tensor (register_hook)")
    if any(input is x for x in (*mode.shared.values(), *mode.given)):
        mode.refuse(
            ValueError(
                f"a hook is registered on a parameter of shape {list(input.shape)} inside "
                "forward(): it would change what passes from one inner step to the next as well, "
                "which is not done. Register it on an activation, or on the module's parameter "
                "outside, where it changes the meta-gradient."
            )
        )
    mode.hooked("registers a hook on a tensor (register_hook)")
    return func(input, hook)


_CHECKPOINTS = "_NoopSaveInputsBackward"
"""What torch.utils.checkpoint asks about itself, until 2.11; it is refused as such."""


def _grad_fn(mode: OwnDerivatives, func: Any, input: Tensor, *_: Any) -> Any:
    """A node of the graph, on which hooks can be registered too."""
    found = mode.below(input).grad_fn
    if found is not None and found.name() != _CHECKPOINTS:
        if mode.forwards:
            mode.not_forwards("asks for the grad_fn of a tensor")
        mode.hooked("asks for the grad_fn of a tensor")
    return found


def _retain_grad(mode: OwnDerivatives, func: Any, input: Tensor) -> None:
    if mode.forwards or not mode.below(input).requires_grad:
        return  # nothing would come
    if mode.batched:
        mode.alone("calls retain_grad()")
    func(input)


def _check_many(mode: OwnDerivatives, outputs: Any, args: Any, kwargs: Any) -> None:
    """Refuse ``is_grads_batched`` and its like, but not what torch.func does for itself."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    many = kwargs.get("is_grads_batched") or any(map(functorch.is_batchedtensor, given))
    levels = {functorch.maybe_get_level(x) for x in tree_leaves(outputs) if isinstance(x, Tensor)}
    if not many or not levels <= {-1, mode.level}:
        return
    what = "takes many derivatives at once (is_grads_batched or vectorize=True)"
    if mode.forwards:
        mode.not_forwards(what)
    if mode.native:
        words = "which cannot be differentiated again through ops that are not PyTorch's"
        mode.refuse(RuntimeError(f"it {what}, {words}"))


def _grad(
    mode: OwnDerivatives, func: Any, outputs: Any, inputs: Any, *args: Any, **kwargs: Any
) -> Any:
    """`torch.autograd.grad`, of parameters that may be constants to this pass."""
    for name, p in mode.shared.items():
        if any(x is p for x in tree_leaves(inputs)):
            mode.refuse(
                ValueError(
                    f"torch.autograd.grad() is called for the parameter {name!r}, which does not "
                    "adapt: adapted parameters depend on it too, so that a loop's result would "
                    "depend on how the loop is differentiated. Take the derivative with "
                    "torch.func.grad, or by a detached copy of the parameter."
                )
            )
    mode.own += [x for x in tree_leaves(inputs) if isinstance(x, nn.Parameter)]
    mode.check_graph("torch.autograd.grad()", (outputs, inputs))
    _check_many(mode, outputs, args, kwargs)
    found = func(outputs, inputs, *args, **kwargs)
    create_graph = kwargs.get("create_graph", args[2] if len(args) > 2 else False)
    if mode.forwards and (mode.off() or not create_graph):  # constants, to forward mode too
        return tree_map_only(Tensor, torch.detach, found)
    return found


def _backward(mode: OwnDerivatives, func: Any, *args: Any, **kwargs: Any) -> Any:
    if mode.forwards:
        mode.not_forwards("calls backward()")
    mode.check_graph("backward()", (args[0] if args else kwargs.get("tensors"),))
    return func(*args, **kwargs)


def _chunked_loss(
    mode: OwnDerivatives, func: Any, *args: Any, options: Any = None, **kwargs: Any
) -> Any:
    """`F.linear_cross_entropy` in chunks has wrong second derivatives, and none under vmap."""
    if options is not None:
        mode.refuse(
            ValueError(
                "F.linear_cross_entropy(options=...), or its module, takes its gradient while it "
                "runs forward, which has no second derivative: leave options out, which gives the "
                "same loss."
            )
        )
    return func(*args, **kwargs)


ALWAYS: dict[Any, Callable[..., Any]] = {
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
    Tensor.requires_grad_: _mark,
    Tensor.requires_grad.__set__: _mark,  # type: ignore[attr-defined]
    Tensor.register_hook: _register_hook,
    Tensor.retain_grad: _retain_grad,
    Tensor.grad_fn.__get__: _grad_fn,  # type: ignore[union-attr]
    Tensor.backward: _backward,
    torch.autograd.backward: _backward,
    torch.autograd.grad: _grad,
}
if hasattr(F, "linear_cross_entropy"):  # from torch 2.13
    ALWAYS[F.linear_cross_entropy] = _chunked_loss
