"""A private copy of a module, in which parameters can be exchanged for any tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.engine.routing.called_by_hand import only_within, written_out
from fastmaml.engine.routing.in_a_row import in_rows

_INTERNAL = frozenset(n for n, v in vars(nn.Module()).items() if isinstance(v, dict | set))
"""What torch notes down in every module (hooks, children): never shared by two."""

Device = torch.device | str | None
Slot = tuple[Any, Any, int]
"""A dict or list, a key or position in it, and the number of the parameter that stands there."""


@dataclass(frozen=True)
class PrivateCopy:
    """A module tree of the original's classes that owns its buffers and calls no other tree.

    Attributes:
        module: the copy.
        slots: every place in it that holds a parameter; tied parameters have several.
        count: how many parameters there are, tied ones once.
    """

    module: nn.Module
    slots: list[Slot]
    count: int

    def write(self, parameters: Sequence[Tensor]) -> None:
        """Put new parameters in their places."""
        for container, key, number in self.slots:
            container[key] = parameters[number]

    def assigned(self, parameters: Sequence[Tensor]) -> dict[int, Tensor]:
        """What stands there instead of these: parameters that somebody assigned to a module."""
        return {
            number: container[key]
            for container, key, number in self.slots
            if container[key] is not parameters[number]
        }


def private_copy(module: nn.Module, device: Device = None) -> tuple[PrivateCopy, list[Tensor]]:
    """Copy a module tree, and the parameters in the copy: clones connected by autograd.

    The parameters are each once, in the order of ``module.parameters()``. They and the copies of
    the buffers are on `device` if given.

    References to its modules are followed through attributes, bound methods, lists, tuples and
    dicts, and those to its parameters through lists and dicts. What a closure or a tuple of
    parameters holds stays the original's.
    """
    twins: dict[nn.Module, nn.Module] = {m: object.__new__(type(m)) for m in module.modules()}
    own = _Own(twins, {id(p): i for i, p in enumerate(module.parameters())})
    buffers: dict[Tensor, Tensor] = {}
    for original, twin in twins.items():
        attributes = {name: own(value) for name, value in original.__dict__.items()}
        for name in _INTERNAL:
            if attributes[name] is original.__dict__[name]:
                attributes[name] = copy.copy(attributes[name])
        attributes["_buffers"] = {
            name: _own_buffer(b, buffers, device) for name, b in original._buffers.items()
        }
        if hasattr(original, "flatten_parameters"):
            # It would move recurrent weights to new memory, and the graph refers to the old.
            attributes["flatten_parameters"] = _nothing
        twin.__dict__.update(attributes)
    clones = [p.clone() if device is None else p.clone().to(device) for p in module.parameters()]
    result = PrivateCopy(twins[module], own.slots, len(clones))
    result.write(clones)
    written_out(result.module)
    only_within(result.module)
    in_rows(result.module)
    return result, clones


@dataclass(frozen=True)
class _Own:
    """What the copy holds where the original holds a value; notes the places of parameters.

    A list or dict that refers to neither modules nor parameters stays the original's, since it may
    be there to be shared.
    """

    twins: dict[nn.Module, nn.Module]
    numbers: dict[int, int]
    slots: list[Slot] = field(default_factory=list)
    seen: dict[int, Any] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind in (list, tuple, dict, OrderedDict):
            if id(value) not in self.seen:
                self.seen[id(value)] = value  # for one that contains itself
                self.seen[id(value)] = self._container(value)
            return self.seen[id(value)]
        if kind is MethodType and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self.twins.get(value.__self__, value.__self__))
        if isinstance(value, nn.Module):
            return self.twins.get(value, value)
        return value

    def _container(self, value: Any) -> Any:
        keyed = isinstance(value, dict)
        items = list(value.values()) if keyed else value
        new = [self(x) for x in items]
        places = [
            (key, self.numbers[id(x)])
            for key, x in zip(value if keyed else range(len(new)), items, strict=True)
            if isinstance(x, Tensor) and id(x) in self.numbers
        ]
        if not places and all(a is b for a, b in zip(items, new, strict=True)):
            return value
        twin = type(value)(zip(value, new, strict=True)) if keyed else type(value)(new)
        if not isinstance(twin, tuple):
            self.slots.extend((twin, key, number) for key, number in places)
        return twin


def _own_buffer(buffer: Tensor | None, seen: dict[Tensor, Tensor], device: Device) -> Tensor | None:
    if buffer is None:
        return None
    if buffer not in seen:
        own = buffer.detach().clone()
        seen[buffer] = own if device is None else own.to(device)
    return seen[buffer]


def _nothing(*arguments: Any, **keywords: Any) -> None:
    """In place of `flatten_parameters`."""
