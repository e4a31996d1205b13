"""`BaseLearner`: a wrapper around a module that passes for it."""

from __future__ import annotations

from typing import Any

from torch import nn


class BaseLearner(nn.Module):
    """Holds a module as ``module``; calls and unknown attributes go to it.

    Args:
        module: what is wrapped; subclasses may set it later.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        """The wrapped module's attributes are this object's, too."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("_modules", {}).get("module")
            if module is None:
                raise
            return getattr(module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns."""
        if self.module is None:
            raise RuntimeError(f"this {type(self).__name__} wraps no module yet: set .module.")
        return self.module(*args, **kwargs)
