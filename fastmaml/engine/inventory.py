"""Everything that a model holds, in one walk: a meta-step looks at it anew each time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmaml.engine.fingerprint import Look


class Inventory(NamedTuple):
    """A model's tensors, each once under its first name, and its settings."""

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    settings: tuple[Any, ...]
    """See `fingerprint`."""
    training: tuple[bool, ...]
    """The mode of every submodule."""

    @property
    def first(self) -> nn.Parameter:
        """The model's first parameter, whose device and dtype are the model's."""
        return next(iter(self.parameters.values()))

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.first.device


def take_inventory(model: nn.Module) -> Inventory:
    """The model's `named_parameters()`, `named_buffers()` and settings, in their order."""
    found = Inventory({}, {}, (), ())
    settings: list[Any] = []
    training: list[bool] = []
    seen: set[int] = set()
    look = Look()

    # Not a function that calls itself: its closure would be a cycle, for the collector to free.
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        settings.append(look.module(module))
        training.append(module.training)
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found.parameters[prefix + name] = parameter
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                found.buffers[prefix + name] = buffer
        inner = [(f"{prefix}{name}.", m) for name, m in module._modules.items() if m is not None]
        waiting += reversed(inner)
    return found._replace(settings=tuple(settings), training=tuple(training))
