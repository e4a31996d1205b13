"""Small modules, and `freeze` and `unfreeze`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Lambda(nn.Module):
    """A function as a module.

    Args:
        lmb: called with what the module is called with.
    """

    def __init__(self, lmb: Callable[..., Any]) -> None:
        super().__init__()
        self.lmb = lmb

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.lmb(*args, **kwargs)


class Flatten(nn.Module):
    """From ``[examples, ...]`` to ``[examples, features]``."""

    def forward(self, x: Tensor) -> Tensor:
        """A view of `x` where there is one, else a copy."""
        return x.reshape(x.size(0), -1)


class Scale(nn.Module):
    """Multiplies by the learned parameter ``alpha``.

    Args:
        shape: of `alpha`, which broadcasts with what it multiplies; None for ``[1]``.
        alpha: what it starts from.
    """

    def __init__(self, shape: int | tuple[int, ...] | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        size = (1,) if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
        self.alpha = nn.Parameter(torch.full(size, float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        """``x * alpha``."""
        return x * self.alpha


def freeze(module: M) -> M:
    """Make no parameter of `module` require a gradient, in place, and return it.

    Parameters of a clone are cut from their graph.
    """
    for parameter in module.parameters():
        parameter.detach_()
    return module


def unfreeze(module: M) -> M:
    """Make every parameter of `module` require a gradient, in place, and return it."""
    for parameter in module.parameters():
        parameter.requires_grad_()
    return module
