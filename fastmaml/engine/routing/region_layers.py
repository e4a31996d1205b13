"""The modules that `torch.utils.checkpoint` calls, run as fastmaml says instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, final

import torch
from torch import nn

from fastmaml.engine.routing.torch_regions import inside, set_aside

Checkpoint = Callable[..., Any]


@contextlib.contextmanager
def layers_of_regions(modules: Iterable[nn.Module], checkpoint: Checkpoint) -> Iterator[None]:
    """Where modules inside of `torch.utils.checkpoint` run through a function.

    What else such a region does is kept: whether it can run again is not known of a function.

    Args:
        modules: all of a model's.
        checkpoint: ``checkpoint(layer, *args)`` runs one, and keeps its inputs only, or all.
    """
    changed = []
    try:
        for module in modules:
            if "forward" not in vars(module) and not isinstance(module, torch.jit.ScriptModule):
                vars(module)["forward"] = _InRegions(module.forward, checkpoint)
                changed.append(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)  # another thread's pass may have been quicker


def runs_its_own(module: nn.Module) -> bool:
    """Whether its ``forward`` is its class's, `layers_of_regions` aside."""
    own = vars(module).get("forward")
    return own is None or isinstance(own, _InRegions)


@final
class _InRegions:
    """A module's ``forward``, run through a function where a region calls it."""

    def __init__(self, forward: Callable[..., Any], checkpoint: Checkpoint) -> None:
        self.forward, self.checkpoint = forward, checkpoint
        self.__wrapped__ = forward  # whose arguments code may ask for

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not inside():
            return self.forward(*args, **kwargs)
        with set_aside():
            return self.checkpoint(partial(self.forward, **kwargs), *args)
