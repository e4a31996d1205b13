"""What may be set on a `MAML` that is made already, and what may not."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn


def _refused(name: str, way: str) -> property:
    def refuse(maml: object, value: object) -> NoReturn:
        raise AttributeError(
            f"maml.{name} = {value!r} would change nothing: {name}= is an argument of which a MAML "
            f"makes others. Set {way}."
        )

    return property(None, refuse)


class GivenLater(nn.Module):
    """Its settings are read at every call; a module would keep any other name, and not read it."""

    lr = _refused("lr", "maml.rule = fastmaml.rules.SGD(...)")
    first_order = _refused(
        "first_order", "maml.gradient = fastmaml.gradients.FirstOrder(), or None for an exact one"
    )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a loss that is a module may give way to one that is a function."""
        if name == "loss" and not isinstance(value, nn.Module):
            self._modules.pop(name, None)
        super().__setattr__(name, value)
