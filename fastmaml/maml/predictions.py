"""What adapted tasks predict, again and again: by replays, once it is known how."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._pytree import tree_map, tree_map_only

from fastmaml.engine.base.distributions import Parts
from fastmaml.engine.base.storages import parts
from fastmaml.engine.step.program import tensors_of
from fastmaml.maml.per_task import Again, PerTask


@final
class Predictions:
    """Calls a per-task function of (state, steps, inputs) that does not change any more.

    Args:
        predict: returns the outputs beside its loss.
        state: of the tasks.
        steps: that they have taken.
    """

    def __init__(self, predict: PerTask, state: Any, steps: int) -> None:
        self._predict, self._state, self._steps = predict, state, steps
        self._known: dict[Any, Again] = {}

    def __call__(self, inputs: tuple[Any, ...]) -> Any:
        """The outputs for inputs ``[tasks, ...]``, no graphs; distributions are put together."""
        plain = all(type(x) is Tensor for x in inputs)
        kind = tuple((x.shape, x.dtype, x.device) for x in inputs) if plain else None
        with torch.no_grad():
            again = self._known.get(kind)
            found = None if again is None else again(inputs)
            if found is None:
                with torch.inference_mode(False), torch.no_grad():
                    found = self._whole_way(tree_map_only(Tensor, usable, inputs), kind)
        return whole(found)

    def _whole_way(self, inputs: tuple[Any, ...], kind: Any) -> Any:
        """Run the function, and keep how to do so again."""
        arguments = self._state, self._steps, inputs
        outputs = self._predict(*arguments).outputs
        if kind is not None:
            again = self._predict.again(arguments, len(inputs))
            self._known.pop(kind, None)
            if again is not None:
                self._known[kind] = again
        given = set().union(*map(_memory, tensors_of((self._state, inputs))))
        return tree_map_only(Tensor, lambda y: y.clone() if _memory(y) & given else y, outputs)


def _memory(x: Tensor) -> set[int]:
    return {part.untyped_storage().data_ptr() for part in parts(x)} - {0}


def usable(x: Tensor) -> Tensor:
    """The same, as autograd takes it: a copy of what inference mode made."""
    return x.clone() if x.is_inference() else x


def taken_apart(tree: Any) -> Any:
    """The same with distributions as trees of tensors."""

    def apart(x: Any) -> Any:
        return Parts.of(x) if isinstance(x, Distribution) else x

    return tree_map(apart, tree, is_leaf=lambda x: isinstance(x, Distribution))


def whole(tree: Any) -> Any:
    """The same with distributions put together."""
    if isinstance(tree, Parts):  # as of a policy, at every step of an environment
        return tree.distribution()

    def together(x: Any) -> Any:
        return x.distribution() if isinstance(x, Parts) else x

    return tree_map(together, tree, is_leaf=lambda x: isinstance(x, Parts))
