"""`BaseLearner`: a wrapper around a module that passes for it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastmaml.engine.routing.called_by_hand import attribute, called


class BaseLearner(nn.Module):
    """Holds a module as ``module``; calls and unknown attributes go to it.

    A clone's calls, and those of the module's own methods, have second derivatives also where
    PyTorch's fused kernels have none, unless ``first_order`` says that none are wanted. What runs
    inside of `torch.utils.checkpoint` is kept, as it would run again with later parameters.

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
            return attribute(module, name, self._called)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns."""
        if self.module is None:
            raise RuntimeError(f"this {type(self).__name__} wraps no module yet: set .module.")
        return self._called(self.module, *args, **kwargs)

    def _called(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """The module, or a method of it."""
        second_order = not self.__dict__.get("first_order", False)
        return called(self.module, second_order, function, *args, **kwargs)  # type: ignore[arg-type]
