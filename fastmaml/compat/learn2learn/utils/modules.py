"""`clone_module`, `detach_module`, `update_module`: modules whose parameters are no leaves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

from fastmaml.engine.routing.called_by_hand import only_within, written_out
from fastmaml.engine.routing.cloning import replace_parameters
from fastmaml.engine.routing.in_a_row import in_rows

Memo = dict[Any, Any]
T = TypeVar("T")


def clone_module(module: T, memo: Memo | None = None) -> T:
    """A shallow copy of the module tree in which every parameter is ``parameter.clone()``.

    Autograd connects the clones to the originals, and a clone of a clone to both. Tied parameters
    stay tied and shared sub-modules shared; sub-modules that are None stay None. Buffers are the
    originals' own, so BatchNorm's running statistics are shared, except for buffers that require a
    gradient, which are cloned.

    Args:
        module: to clone. What is no `nn.Module` is returned as it is.
        memo: originals and their clones. Give one dict to several calls and what these modules
            share is shared by the clones, too.
    """
    if not isinstance(module, nn.Module):
        return module
    clone = _clone(module, {} if memo is None else memo)
    replace_parameters(clone, {})  # recurrent modules keep a second list of their weights
    written_out(clone)
    only_within(clone)
    in_rows(clone)
    return clone  # type: ignore[return-value]  # it has the class of the original


def detach_module(module: Any, keep_requires_grad: bool = False) -> None:
    """Cut the parameters, and buffers that require a gradient, from their graph, in place.

    Args:
        module: a clone, or any module. What is no `nn.Module` is left alone.
        keep_requires_grad: whether what required a gradient becomes a leaf that requires one; by
            default nothing in the module requires a gradient any more.
    """
    if not isinstance(module, nn.Module):
        return
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.requires_grad)]
    for tensor in tensors:
        wanted = tensor.requires_grad
        tensor.detach_()
        if keep_requires_grad and wanted:
            tensor.requires_grad_()


def update_module(
    module: nn.Module, updates: Iterable[Tensor | None] | None = None, memo: Memo | None = None
) -> nn.Module:
    """Put ``p + update`` in the place of every parameter p, keeping the graph, and return `module`.

    A tied parameter moves once and stays tied.

    Args:
        module: changed in place; its parameters become results of autograd.
        updates: one for each of ``module.parameters()``, None where a parameter stays; by default
            each tensor's own attribute ``update``, which is used up. Buffers with that attribute
            move, too.
        memo: tensors and what took their place. Give one dict to several calls and tensors that
            these modules share stay shared.

    Raises:
        ValueError: not as many updates as parameters.
    """
    if updates is not None:
        set_updates(module, updates)
    memo = {} if memo is None else memo
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        update = getattr(tensor, "update", None)
        if update is not None and tensor not in memo:
            memo[tensor] = tensor + update
            tensor.update = None  # type: ignore[attr-defined]  # it would keep its graph alive
    moved = {t: memo[t] for t in tensors if t in memo}
    replace_parameters(module, moved)
    if any(b in moved for b in module.buffers()):
        for owner in module.modules():
            owner._buffers.update({n: moved[b] for n, b in owner._buffers.items() if b in moved})
    return module


def set_updates(module: nn.Module, updates: Iterable[Tensor | None]) -> None:
    """Set the attribute ``update`` of every parameter.

    Raises:
        ValueError: not as many updates as parameters.
    """
    given, parameters = list(updates), list(module.parameters())
    if len(given) != len(parameters):
        raise ValueError(
            f"there are {len(given)} updates for {len(parameters)} parameters: give one for each "
            "of module.parameters(), None for a parameter that is to stay as it is."
        )
    for parameter, update in zip(parameters, given, strict=True):
        parameter.update = update  # type: ignore[attr-defined]  # a tensor takes attributes


def _clone(module: nn.Module, memo: Memo) -> nn.Module:
    if module in memo:
        found: nn.Module = memo[module]
        return found
    # Not copy.copy: a module may have ideas of its own about how it is pickled.
    clone: nn.Module = object.__new__(type(module))
    memo[module] = clone
    clone.__dict__.update(module.__dict__)
    clone.__dict__["_parameters"] = {
        n: None if p is None else _tensor(p, memo) for n, p in module._parameters.items()
    }
    clone.__dict__["_buffers"] = {
        n: _tensor(b, memo) if b is not None and b.requires_grad else b
        for n, b in module._buffers.items()
    }
    clone.__dict__["_modules"] = {
        n: None if child is None else _clone(child, memo) for n, child in module._modules.items()
    }
    return clone


def _tensor(tensor: Tensor, memo: Memo) -> Tensor:
    if tensor not in memo:
        memo[tensor] = tensor.clone()
    found: Tensor = memo[tensor]
    return found
