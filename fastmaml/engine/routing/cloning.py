"""A module whose parameters are differentiable functions of another's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fastmaml.engine.routing.called_by_hand import only_within, written_out
from fastmaml.engine.routing.in_a_row import in_rows


def clone_module(module: nn.Module) -> nn.Module:
    """A copy of the module tree in which every parameter is ``parameter.clone()``.

    The clones are connected to the originals by autograd. Tied parameters and shared sub-modules
    stay tied and shared. Buffers are the originals' own, so BatchNorm's running statistics are
    shared, as in learn2learn.
    """
    clone = _with_parameters(module, {p: p.clone() for p in module.parameters()}, {})
    written_out(clone)
    only_within(clone)
    in_rows(clone)
    return clone


def replace_parameters(module: nn.Module, new: Mapping[Tensor, Tensor]) -> None:
    """Put the values of `new` where its keys are, in place, in a tree made by `clone_module`."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter in new:
                owner._parameters[name] = new[parameter]  # type: ignore[assignment]
        _refresh(owner)


def _with_parameters(
    module: nn.Module, new: Mapping[Tensor, Tensor], seen: dict[nn.Module, nn.Module]
) -> nn.Module:
    if module in seen:
        return seen[module]
    # Not copy.copy, which modules with parametrizations refuse.
    clone = object.__new__(type(module))
    seen[module] = clone
    clone.__dict__ = dict(module.__dict__)
    clone._buffers = dict(module._buffers)
    clone._parameters = {
        n: None if p is None else new[p]  # type: ignore[misc]  # clones are no leaves
        for n, p in module._parameters.items()
    }
    clone._modules = {
        n: None if child is None else _with_parameters(child, new, seen)
        for n, child in module._modules.items()
    }
    _refresh(clone)
    return clone


def _refresh(module: nn.Module) -> None:
    """A recurrent module keeps a second list of its weights."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]
