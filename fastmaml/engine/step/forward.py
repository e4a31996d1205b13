"""The user's model and loss as a pure function of parameters, over all tasks at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastmaml.engine.base.dynamo import as_written
from fastmaml.engine.base.seeds import step_keys
from fastmaml.engine.base.unvalidated import unvalidated
from fastmaml.engine.derivatives.own_derivatives import NeedsGraphError, OwnDerivatives
from fastmaml.engine.derivatives.sparse_constants import outside
from fastmaml.engine.model.functional_call import functional
from fastmaml.engine.routing.in_place import Follower, InPlace
from fastmaml.engine.routing.mode import Routing
from fastmaml.engine.routing.region_layers import layers_of_regions
from fastmaml.engine.step.head_layer import HeadLayer, Listener
from fastmaml.engine.step.layer_checkpoint import checkpointed
from fastmaml.engine.step.shared_passes import Kept, SharedPass
from fastmaml.episodes.batch import Batch
from fastmaml.gradients.base import leaves_of
from fastmaml.models.per_step import row_of_pass
from fastmaml.rules.base import Tensors

Loss = Callable[[Any, Any], Tensor]

_DRAWS_OF_A_PASS = 2**19
"""Keys of passes are 2^20 apart: the first half is the model's, the rest is for a head to draw."""


class Host(Protocol):
    """What the library that a model comes from needs while it runs (`integrations`)."""

    @property
    def functions(self) -> tuple[Any, ...]:
        """Of the library or the user, what of it the model runs by name."""

    def checkpointing(self, checkpoint: Callable[..., Any], constants: Tensors) -> Any:
        """``checkpoint(layer, *args)`` for layers that run again when nothing is inside."""

    def inside(
        self, checkpoint: Callable[..., Any], constants: Tensors
    ) -> AbstractContextManager[None]:
        """The context in which the model runs with these constants in place of its own.

        Args:
            checkpoint: as `checkpointing` gives it; keeps inputs only.
            constants: `TaskForward.frozen`.
        """

    def notes(self) -> list[str]:
        """What is done differently, a line each."""


@dataclass(frozen=True)
class TaskForward:
    """``losses, outputs = forward(...)`` for tasks that each have their own parameters.

    Attributes:
        model: called as ``model(x)``, ``model(*x)`` or ``model(**x)``; never changed.
        loss: ``loss(output, targets)`` of one task, a scalar; of its inner steps.
        frozen: parameters that are not learned, or what stands for them with a host; all tasks
            share them.
        buffers: the model's buffers; every forward pass begins with a copy of them.
        own_statistics: see `Routing`.
        keeps_buffers: whether what a pass writes to the buffers is handed out.
        batched: whether tasks run under vmap; else there is one task, and it runs plainly.
        backend: what runs the functions that have an op family (`fastmaml.ops`).
        fuses: whether a chain of such functions may become one op, at the price of calling the
            first ones for nothing: for recordings, which drop what nothing uses.
        host: of the library that the model comes from; None for plain modules.
        regions: whether the model has regions of `torch.utils.checkpoint`: its layers in these run
            again.
        listen: a context for each pass, of the tensors that it is given; it hears of every call.
        query_loss: that of the query set; None where it is the same.
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
    host: Host | None = None
    regions: bool = False
    listen: Callable[[Any], AbstractContextManager[Any]] | None = None
    query_loss: Loss | None = None

    @property
    def losses(self) -> tuple[Loss, Loss]:
        """The loss of support sets, and that of the query set."""
        return self.loss, self.loss if self.query_loss is None else self.query_loss

    def __call__(
        self,
        adapted: Tensors,
        shared: Tensors,
        batch: Batch,
        seeds: Tensor,
        step: int,
        query: bool = False,
        rows: Tensors | None = None,
        kept: Kept | None = None,
    ) -> tuple[Tensor, Any, Tensors]:
        """Per-task losses ``[tasks]``, outputs ``[tasks, ...]`` and buffers as the pass left them.

        Args:
            adapted: ``[tasks, *shape]`` parameters.
            shared: ``[*shape]`` parameters.
            batch: tensors ``[tasks, examples, ...]``.
            seeds: ``[tasks]``.
            step: the inner step, which decides the random draws together with `query`.
            query: whether `batch` is the query set.
            rows: ``[tasks, rows]``, for tables among `adapted` that hold only some rows of the
                model's: which.
            kept: what passes over this set with these shared parameters have in common, if they
                are to share it.
        """
        keys = step_keys(seeds, step, query)
        given = (batch.inputs, batch.targets, keys, rows or {}, self._buffers(len(seeds)))
        how = self.losses[query], row_of_pass(step, query), shared, kept
        result: tuple[Tensor, Any, Tensors]
        try:
            result = self.by_task(partial(self._one, *how), (adapted, *given), shared)
        except NeedsGraphError:
            # Of parameters that are constants to this pass, and not to a plain loop's.
            adapted, shared = _differentiable(adapted), _differentiable(shared)
            how = *how[:2], shared, kept
            result = self.by_task(partial(self._one, *how), (adapted, *given), shared)
        return result

    def head(
        self,
        layer: HeadLayer,
        adapted: Tensors,
        shared: Tensors,
        batch: Batch,
        seeds: Tensor,
        rows: Tensors,
        kept: Kept | None = None,
    ) -> Tensors:
        """The parameters ``[tasks, *shape]`` that a head begins with, for such a support set.

        Args:
            layer: which head, and the names of its parameters.
            adapted, shared, batch, seeds, rows, kept: as for a call, without the head's parameters.
        """
        keys = step_keys(seeds, 0, False)
        one = partial(self._head_of_one, layer, shared, kept)
        given = (adapted, batch.inputs, batch.targets, keys, rows)
        found: Tensors = self.by_task(one, given, shared)
        return found

    def by_task(self, one: Callable[..., Any], arguments: tuple[Any, ...], shared: Tensors) -> Any:
        """A function of one task's tensors, for all tasks: a tree of ``[tasks, ...]``.

        It runs with gradients on, since it may take some of its own; where they were off before,
        what it returns is detached.
        """
        leaves, spec = tree_flatten(arguments)
        layout: list[Any] = []  # of what one task returns, known once one has run

        def plain(*tensors: Tensor) -> tuple[Tensor, ...]:
            native = self.backend != "reference"
            with OwnDerivatives(self.model, self.batched, shared, tensors, native):
                layout[:] = tree_flatten(one(*tree_unflatten(_filled(leaves, tensors), spec)))
            return tuple(x for x in layout[0] if isinstance(x, Tensor))

        tensors = [x for x in leaves if isinstance(x, Tensor)]
        with as_written(), unvalidated(), torch.enable_grad():
            if self.batched:
                found = vmap(plain, randomness="error")(*tensors)
            else:
                found = tuple(x.unsqueeze(0) for x in plain(*(x.squeeze(0) for x in tensors)))
        if not torch.is_grad_enabled():
            found = tuple(x.detach() for x in found)
        return tree_unflatten(_filled(layout[0], found), layout[1])

    def _buffers(self, tasks: int) -> Tensors:
        """One copy a task of what a forward pass may write to, where that is kept."""
        if not self.keeps_buffers:
            return {}
        return {
            n: b.expand(tasks, *b.shape).clone()
            for n, b in self.buffers.items()
            if b.layout is torch.strided
        }

    def _one(
        self,
        loss_of_task: Loss,
        row: int,
        shared: Tensors,
        kept: Kept | None,
        adapted: Tensors,
        inputs: Any,
        targets: Any,
        key: Tensor,
        rows: Tensors,
        buffers: Tensors,
    ) -> tuple[Tensor, Any, Tensors]:
        """One task's loss (a scalar), outputs and buffers."""
        tensors = {**self.constants(buffers), **shared}
        same = tensors, inputs, targets
        with self.surroundings(key, adapted, rows, kept, same, row):
            output = call(self.model, {**tensors, **adapted}, inputs)
            loss = loss_of_task(output, targets)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            name = "loss" if loss_of_task is self.loss else "query_loss"
            raise ValueError(
                f"{name}(output, targets) returned {got}; it must return a scalar tensor for one "
                "task, for example the mean over its examples (reduction='mean')."
            )
        return loss, _plain(output), buffers if self.keeps_buffers else {}

    def _head_of_one(
        self,
        layer: HeadLayer,
        shared: Tensors,
        kept: Kept | None,
        adapted: Tensors,
        inputs: Any,
        targets: Any,
        key: Tensor,
        rows: Tensors,
    ) -> Tensors:
        """What the head begins one task with, by name."""
        own = {n: self.frozen[n].detach() for n in layer.names}
        weight = own[layer.weight]
        features = weight.new_empty(0, weight.shape[1])
        if layer.head.needs_features:
            tensors = {**self.constants({}), **shared}
            same = tensors, inputs, targets
            with self.surroundings(key, adapted, rows, kept, same), Listener(weight) as heard:
                call(self.model, {**tensors, **adapted, **own}, inputs)
            features = heard.features(layer.weight)
        same = own, features, targets
        with self.surroundings(key + _DRAWS_OF_A_PASS, {}, {}, same=same):
            return layer.start(own, features, targets)

    def constants(self, buffers: Tensors) -> Tensors:
        """What the model holds besides parameters that are learned."""
        # Copies: a module may write to its buffers, and the user's must not change.
        rest = {n: _copy(b) for n, b in self.buffers.items() if n not in buffers}
        return {**self.frozen, **rest, **buffers}

    def surroundings(
        self,
        key: Tensor,
        adapted: Tensors,
        rows: Tensors,
        kept: Kept | None = None,
        same: Any = (),
        row: int = 0,
    ) -> ExitStack:
        """What is active while the model runs.

        Args:
            key: of its draws.
            adapted, rows: as for a call.
            kept: what passes have in common.
            same: a tree of tensors that are alike in every pass of `kept`.
            row: see `row_of_pass`.
        """
        stack = ExitStack()
        tables = [(adapted[name], found) for name, found in rows.items()]
        how = self.own_statistics, self.backend, self.fuses, tables, row
        routing = Routing(key, *how)
        stack.enter_context(routing)
        checkpoint: Callable[..., Any] = partial(checkpointed, routing)
        if self.host is not None:
            checkpoint = self.host.checkpointing(checkpoint, self.frozen)
            stack.enter_context(self.host.inside(checkpoint, self.frozen))
        if self.regions:
            stack.enter_context(layers_of_regions(self.model.modules(), checkpoint))
        followers: list[Follower] = [routing]
        if kept is not None:
            followers.insert(0, stack.enter_context(SharedPass(kept, routing, same)))
        stack.enter_context(InPlace(followers))
        if self.listen is not None:
            stack.enter_context(self.listen((adapted, same)))
        return stack


def _copy(x: Tensor) -> Tensor:
    return x.clone() if x.layout is torch.strided else outside(x.clone)


def _differentiable(tensors: Tensors) -> Tensors:
    """Those that require no gradient as leaves that do."""
    return {n: x if x.requires_grad else leaves_of(x) for n, x in tensors.items()}


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
        if isinstance(x, Tensor) and x.layout is not torch.strided:
            raise ValueError(
                f"the model returned a tensor of the layout {x.layout}: return a dense one "
                "(x.to_dense()), so that tasks can be told apart."
            )
    return output


def call(model: nn.Module, parameters: Tensors, inputs: Any) -> Any:
    """``model(x)``, ``model(*x)`` or ``model(**x)`` with these parameters and buffers."""
    if isinstance(inputs, dict):
        return functional(model, parameters, (), inputs)
    arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return functional(model, parameters, arguments)
