"""A module whose layers are replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn


class MetaModule(nn.Module):
    """A module in which layers of some classes are replaced, in place.

    Args:
        module: changed in place; it becomes part of ``wrapped_module``.
        substitutions: by exact class, a function that makes of a layer what takes its place. It may
            hold the layer, as `MetaLayer` does; what it adds is not replaced again.
        freeze_module: whether the parameters of `module` no longer require a gradient; those of the
            substitutes do.
    """

    def __init__(
        self,
        module: nn.Module,
        substitutions: Mapping[type[nn.Module], Callable[[Any], nn.Module]],
        freeze_module: bool = True,
    ) -> None:
        super().__init__()
        self.substitutions = substitutions
        self.freeze_module = freeze_module
        own = list(module.parameters())
        self.wrapped_module = self._wrap(module)
        if freeze_module:  # only now: a substitute may begin as a copy, and learn
            for parameter in own:
                parameter.requires_grad_(False)

    def _wrap(self, module: nn.Module) -> nn.Module:
        for name, child in module.named_children():
            module._modules[name] = self._wrap(child)
        substitute = self.substitutions.get(type(module))
        return module if substitute is None else substitute(module)

    def meta_parameters(self, module: nn.Module | None = None) -> Iterator[nn.Parameter]:
        """What the methods ``meta_parameters`` of the sub-modules yield, each parameter once.

        Args:
            module: where to look; None for everywhere.
        """
        found: dict[nn.Parameter, None] = {}
        for part in (self.wrapped_module if module is None else module).modules():
            own = getattr(part, "meta_parameters", None)
            if own is not None:
                found.update(dict.fromkeys(own()))
        yield from found

    def module(self) -> nn.Module:
        """The original module again: every substitute gives way to its ``module``, if it has one.

        Changes this one in place.
        """
        return _unwrap(self.wrapped_module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module with its substitutes returns."""
        return self.wrapped_module(*args, **kwargs)


def _unwrap(module: nn.Module) -> nn.Module:
    inside = getattr(module, "module", None)
    base = inside if isinstance(inside, nn.Module) else module
    for name, child in base.named_children():
        base._modules[name] = _unwrap(child)
    return base
