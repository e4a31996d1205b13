"""A layer around another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


class MetaLayer(nn.Module):
    """A layer around another that adds parameters of its own.

    Args:
        module: the layer inside.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer inside returns."""
        return self.module(*args, **kwargs)

    def meta_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are not the layer's inside."""
        inside = set(self.module.parameters())
        return (p for p in self.parameters() if p not in inside)
