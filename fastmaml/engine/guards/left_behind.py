"""Tensors that a run of the model leaves behind: does the next one read them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base import functorch
from fastmaml.engine.base.trees import found_in


def left_behind(x: Tensor) -> bool:
    """Whether a run made it, as an activation that a model keeps: it says nothing of the next."""
    return x.grad_fn is not None or functorch.is_functorch_wrapped_tensor(x)


class LeftBehind(TorchFunctionMode):
    """Watches whether such tensors are read before others take their place.

    Args:
        places: functions that give trees of them, and how that is called.

    Attributes:
        read: the first that was; empty if none was.
    """

    def __init__(self, places: Iterable[tuple[Callable[[], Any], str]]) -> None:
        super().__init__()
        found = ((x, label) for tree, label in places for x in tree_leaves(tree()))
        self._tensors = [(x, label) for x, label in found if isinstance(x, Tensor)]
        self._labels = {id(x): label for x, label in self._tensors}
        self.read = ""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, and note the first such tensor that it is given."""
        for x in found_in((args, kwargs), Tensor):
            self.read = self.read or self._labels.get(id(x), "")
        return func(*args, **(kwargs or {}))
