"""The user's model and loss as a pure function of parameters, over all tasks at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastmaml.engine.randomness import step_keys
from fastmaml.engine.routing import Routing
from fastmaml.episodes.batch import Batch
from fastmaml.rules.base import Tensors

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class TaskForward:
    """``losses, outputs = forward(...)`` for tasks that each have their own parameters.

    Attributes:
        model: called as ``model(x)``, ``model(*x)`` or ``model(**x)``; never changed.
        loss: ``loss(output, targets)`` of one task, a scalar.
        frozen: parameters that are not learned; all tasks share them.
        buffers: the model's buffers; every forward pass begins with a copy of them.
        own_statistics: see `Routing`.
        keeps_buffers: whether what a pass writes to the buffers is handed out.
        batched: whether tasks run under vmap; else there is one task, and it runs plainly.
        backend: what runs the functions that have an op family (`fastmaml.ops`).
        fuses: whether a chain of such functions may become one op, at the price of calling the
            first ones for nothing: for recordings, which drop what nothing uses.
    """

    model: nn.Module
    loss: Loss
    frozen: Tensors
    buffers: Tensors
    own_statistics: bool
    keeps_buffers: bool
    batched: bool
    backend: str = "reference"
    fuses: bool = False

    def __call__(
        self,
        adapted: Tensors,
        shared: Tensors,
        batch: Batch,
        seeds: Tensor,
        step: int,
        query: bool = False,
    ) -> tuple[Tensor, Any, Tensors]:
        """Per-task losses ``[tasks]``, outputs ``[tasks, ...]`` and buffers as the pass left them.

        Args:
            adapted: ``[tasks, *shape]`` parameters.
            shared: ``[*shape]`` parameters.
            batch: tensors ``[tasks, examples, ...]``.
            seeds: ``[tasks]``.
            step: the inner step, which decides the random draws together with `query`.
            query: whether `batch` is the query set.
        """
        keys = step_keys(seeds, step, query)
        arguments = (adapted, batch.inputs, batch.targets, keys, self._buffers(len(seeds)))
        leaves, spec = tree_flatten(arguments)
        layout: list[Any] = []  # of what one task returns, known once one has run

        def one(*tensors: Tensor) -> tuple[Tensor, ...]:
            own = tree_unflatten(_filled(leaves, tensors), spec)
            layout[:] = tree_flatten(self._one(shared, *own))
            return tuple(x for x in layout[0] if isinstance(x, Tensor))

        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if self.batched:
            found = vmap(one, randomness="error")(*tensors)
        else:
            found = tuple(x.unsqueeze(0) for x in one(*(x.squeeze(0) for x in tensors)))
        result: tuple[Tensor, Any, Tensors] = tree_unflatten(_filled(layout[0], found), layout[1])
        return result

    def _buffers(self, tasks: int) -> Tensors:
        """One copy a task of what a forward pass may write to, where that is kept."""
        if not self.keeps_buffers:
            return {}
        return {n: b.expand(tasks, *b.shape).clone() for n, b in self.buffers.items()}

    def _one(
        self,
        shared: Tensors,
        adapted: Tensors,
        inputs: Any,
        targets: Any,
        key: Tensor,
        buffers: Tensors,
    ) -> tuple[Tensor, Any, Tensors]:
        """One task."""
        if not self.keeps_buffers:
            # Copies: a module may write to its buffers, and the user's must not change.
            buffers = {n: b.clone() for n, b in self.buffers.items()}
        with Routing(key, self.own_statistics, self.backend, self.fuses):
            output = call(self.model, {**self.frozen, **buffers, **shared, **adapted}, inputs)
            loss = self.loss(output, targets)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"loss(output, targets) returned {got}; it must return a scalar tensor for one "
                "task, for example the mean over its examples (reduction='mean')."
            )
        return loss, _plain(output), buffers if self.keeps_buffers else {}


def _filled(leaves: list[Any], tensors: Iterable[Tensor]) -> list[Any]:
    """The leaves with these tensors, in order, where they hold tensors."""
    rest = iter(tensors)
    return [next(rest) if isinstance(x, Tensor) else x for x in leaves]


def _plain(output: Any) -> Any:
    """The output as a tree of tensors and constants; a dataclass becomes a dict of its fields."""
    if dataclasses.is_dataclass(output) and tree_flatten(output)[0] == [output]:
        fields = dataclasses.fields(output)
        return {field.name: _plain(getattr(output, field.name)) for field in fields}
    for x in tree_flatten(output)[0]:
        if not isinstance(x, Tensor | bool | int | float | str | None):
            raise ValueError(
                f"the model returned a {type(x).__name__}: return tensors, or tuples, lists, dicts "
                "or dataclasses of them, so that tasks can be told apart."
            )
    return output


def call(model: nn.Module, parameters: Tensors, inputs: Any) -> Any:
    """``model(x)``, ``model(*x)`` or ``model(**x)`` with these parameters and buffers."""
    if isinstance(inputs, dict):
        return functional_call(model, parameters, (), inputs)
    arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return functional_call(model, parameters, arguments)
