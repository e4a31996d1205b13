"""What a layer reads of itself besides tensors that learn: settings that must stay as they were."""

from __future__ import annotations

import weakref
from typing import Any, final

from torch import Tensor, nn

_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None))


@final
class LayerSettings:
    """The attributes of a layer and its modules: numbers, strings, None, and tensors.

    Also those in tuples, lists and dicts. Other objects are not looked into.

    Args:
        layer: of which they are, now.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.before = _settings(layer)

    def has_run(self) -> None:
        """Forget the tensors that the layer itself has left in its attributes meanwhile."""
        now = _settings(self.layer)
        self.before = {
            n: x
            for n, x in self.before.items()
            if not isinstance(x, weakref.ref) or _alike(x, now.get(n))
        }

    def check(self) -> None:
        """Raise ValueError where one is another now."""
        now = _settings(self.layer)
        for name, was in self.before.items():
            found = now.get(name, _MISSING)
            if not _alike(was, found):
                raise ValueError(
                    f"a checkpointed layer, {type(self.layer).__name__}, runs again for its "
                    f"gradient, but its {name} {_change(was, found)}: give that to the layer as "
                    "an argument, or leave this layer out of gradient checkpointing."
                )


_MISSING = object()


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, weakref.ref) or isinstance(b, weakref.ref):
        return a is b  # a tensor that is alive has one of these, which compare by its values
    return bool(a is b or a == b or (a != a and b != b))


def _change(was: Any, found: Any) -> str:
    if isinstance(was, weakref.ref) or isinstance(found, weakref.ref):
        return "is another tensor by then"
    if found is _MISSING:
        return f"was {was!r} and is gone by then"
    return f"was {was!r} and is {found!r} by then"


def _settings(layer: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                _note(f"{path}.{name}".lstrip("."), value, found, depth=2)
    return found


def _note(name: str, value: Any, found: dict[str, Any], depth: int) -> None:
    if isinstance(value, _CONSTANTS):
        found[name] = value
    elif isinstance(value, Tensor):
        found[name] = weakref.ref(value)  # not kept: it may hold a graph
    elif depth and type(value) in (tuple, list):
        for i, x in enumerate(value):
            _note(f"{name}[{i}]", x, found, depth - 1)
    elif depth and type(value) is dict:
        for key, x in value.items():
            _note(f"{name}[{key!r}]", x, found, depth - 1)
