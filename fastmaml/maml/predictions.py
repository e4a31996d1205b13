"""What adapted tasks predict, again and again: by replays, once it is known how."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._pytree import tree_map

from fastmaml.engine.base.distributions import Parts
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
                arguments = self._state, self._steps, inputs
                found = self._predict(*arguments).outputs
                again = self._predict.again(arguments, len(inputs)) if plain else None
                if again is not None:
                    self._known[kind] = again
        return whole(found)


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
