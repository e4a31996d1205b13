"""`clone_distribution` and `detach_distribution`: as for modules, for torch.distributions."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from fastmaml.compat.learn2learn.utils.modules import clone_module, detach_module


def clone_distribution(dist: Distribution) -> Distribution:
    """A copy of `dist` whose tensors with a gradient, modules and distributions are clones.

    Autograd connects the clones to the originals.
    """

    def cloned(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item.clone() if item.requires_grad else item
        return clone_distribution(item) if isinstance(item, Distribution) else clone_module(item)

    clone = copy.copy(dist)
    clone.__dict__ = {name: cloned(item) for name, item in dist.__dict__.items()}
    return clone


def detach_distribution(dist: Distribution) -> Distribution:
    """Cut what requires a gradient in `dist` from its graph, in place, and return `dist`."""
    for name, item in dist.__dict__.items():
        if isinstance(item, Tensor):
            dist.__dict__[name] = item.detach()
        elif isinstance(item, Distribution):
            detach_distribution(item)
        elif isinstance(item, nn.Module):
            detach_module(item)
    return dist
