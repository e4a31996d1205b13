"""Everything that a model holds: a meta-step looks at it anew each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from fastmaml.engine.model.refused_models import check_whole


class Inventory(NamedTuple):
    """A model's tensors, each once under its first name; not to be changed.

    It stands for the call of the user's for which it was taken, too.
    """

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    training: tuple[bool, ...]
    """The mode of every submodule."""
    call: object
    """Another one at each time."""

    @property
    def first(self) -> nn.Parameter:
        """The model's first parameter, whose device is the model's."""
        return next(iter(self.parameters.values()))

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter."""
        return self.first.device

    @property
    def dtype(self) -> torch.dtype:
        """The widest real one of the parameters, at least float32."""
        widest = torch.float32
        for dtype in {x.dtype for x in self.parameters.values()}:
            if dtype.is_floating_point or dtype.is_complex:
                widest = torch.promote_types(widest, dtype.to_real())
        return widest


_PARTS = itemgetter("_parameters", "_buffers", "_modules")


@dataclass
class _Walk:
    """A walk through a model: the dicts that it looked into, and what it found there."""

    model: nn.Module
    modules: list[nn.Module] = field(default_factory=list)
    attributes: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    """The names and values of all parts."""
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def still(self) -> bool:
        """Whether another walk would find the very same."""
        parts = self.parts
        return (
            all(map(is_, chain.from_iterable(map(_PARTS, self.attributes)), parts))
            and list(map(len, parts)) == self.sizes
            and all(map(is_, self.now(), self.entries))
        )

    def now(self) -> Iterator[Any]:
        """The names and values that the parts hold now; compare with `entries`."""
        return chain(chain.from_iterable(self.parts), *map(dict.values, self.parts))


@final
class Stock:
    """Takes the inventory of a model again and again; what is as it was is not walked through.

    A copy begins anew.
    """

    def __init__(self) -> None:
        self._walk: _Walk | None = None

    def __reduce__(self) -> Any:
        return Stock, ()

    def take(self, model: nn.Module) -> Inventory:
        """The model's `named_parameters()`, `named_buffers()` and modes, in their order."""
        walk = self._walk
        if walk is None or walk.model is not model or not walk.still():
            walk = self._walk = _walk(model)
        training = tuple([m.training for m in walk.modules])
        return Inventory(walk.parameters, walk.buffers, training, object())


def take_inventory(model: nn.Module) -> Inventory:
    """The inventory of a model that is asked for once; `Stock.take` is for many times."""
    return Stock().take(model)


def _walk(model: nn.Module) -> _Walk:
    check_whole(model)  # FSDP may have sharded it since it was given
    found = _Walk(model)
    seen: set[int] = set()
    for prefix, module in _modules(model):
        found.modules.append(module)
        found.attributes.append(module.__dict__)
        parts = _PARTS(module.__dict__)
        found.parts += parts
        for into, part in zip((found.parameters, found.buffers), parts, strict=False):
            for name, x in part.items():
                if x is not None and id(x) not in seen:
                    seen.add(id(x))
                    into[prefix + name] = x  # type: ignore[index]
    found.sizes, found.entries = list(map(len, found.parts)), list(found.now())
    return found


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with the prefix of what it holds, as `named_modules()` has them."""
    seen: set[int] = set()
    # Not a function that calls itself: its closure would be a cycle, for the collector to free.
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield prefix, module
        inner = [(f"{prefix}{name}.", m) for name, m in module._modules.items() if m is not None]
        waiting += reversed(inner)
