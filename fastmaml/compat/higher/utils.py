"""Helpers that scripts call: `flatten` and `get_func_params`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastmaml.compat.higher.tree import Device


def flatten(x: Any) -> list[Any]:
    """The leaves of `x`: of nested dicts (their values), lists, tuples and sets, in order."""
    if isinstance(x, dict):
        x = x.values()
    elif not isinstance(x, list | tuple | set):
        return [x]
    return [leaf for y in x for leaf in flatten(y)]


def get_func_params(
    module: nn.Module, device: Device = None, safe_copy: bool = True
) -> list[Tensor]:
    """The module's parameters, detached, requiring gradients where they did.

    Args:
        module: any module.
        device: where they go.
        safe_copy: False shares memory with the module's own.
    """
    return [_copy_tensor(p, safe_copy, device) for p in module.parameters()]


# higher keeps these two for itself; public scripts import them all the same.
def _copy_tensor(t: Tensor, safe_copy: bool, device: Device = None) -> Tensor:
    own = t.detach().clone() if safe_copy else t.detach()
    own = own if device is None else own.to(device)
    return own.requires_grad_(t.requires_grad)


def _recursive_map(target: Any, map_fn: Callable[[Any], Any]) -> Any:
    return mapped(target, map_fn)


def mapped(x: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of every leaf of nested dicts, lists, tuples and sets."""
    if isinstance(x, dict):
        return type(x)((k, mapped(y, function)) for k, y in x.items())
    if isinstance(x, list | tuple | set):
        return type(x)(mapped(y, function) for y in x)
    return function(x)
