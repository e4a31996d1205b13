"""A meta-step's arguments as a flat list of tensors, and its result as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastmaml.engine.base.sizes import Sizes, general, sizes_of
from fastmaml.engine.base.storages import address
from fastmaml.engine.base.trees import Spec, flatten, unflatten
from fastmaml.engine.recording.tape import UncapturableError
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Call, MetaResult, Program
from fastmaml.gradients.base import Meta

Function = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class FlatCall:
    """The arguments of a meta-step: what all tasks share, and what has a ``tasks`` dimension.

    Attributes:
        call: what runs.
        shared: leaves of (meta-parameters, frozen parameters, buffers, weights of steps).
        own: leaves of (data, seeds, weights, cotangents).
        specs: the trees of both.
        seeds: ``[tasks]``, one of `own`.
    """

    call: Call
    shared: list[Any]
    own: list[Any]
    specs: tuple[Spec, Spec]
    seeds: Tensor

    @property
    def program(self) -> Program:
        """Frozen parameters and buffers are among `shared`."""
        return self.call.program

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self.seeds)

    def chunk(self, begin: int, end: int) -> FlatCall:
        """The arguments of these tasks."""
        if (begin, end) == (0, self.tasks):
            return self
        own = [x[begin:end] if isinstance(x, Tensor) else x for x in self.own]
        return replace(self, own=own, seeds=self.seeds[begin:end])

    def chunks(self) -> list[FlatCall]:
        """Those that run at a time."""
        size, tasks = self.program.chunk, self.tasks
        return [self.chunk(i, min(i + size, tasks)) for i in range(0, tasks, size)]

    def tensors(self) -> list[Tensor]:
        """All tensors of the call: the shared ones, then those of ``[tasks, ...]``."""
        return [x for x in (*self.shared, *self.own) if isinstance(x, Tensor)]

    def meta(self) -> Meta:
        """The meta-parameters, as a tree again."""
        meta: Meta = unflatten(self.shared, self.specs[0])[0]
        return meta

    def kind(self) -> Any:
        """Everything but the numbers in the tensors."""
        leaves = (
            (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x
            for x in (*self.shared, *self.own)
        )
        return (self.call.data.kind, self.specs, tuple(leaves))

    def general_kind(self) -> Any:
        """The same but for the sizes of data; whether one is 0 or 1 is no matter of degree."""
        shared = (
            (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x
            for x in self.shared
        )
        own = (general(x) if isinstance(x, Tensor) else x for x in self.own)
        return (self.call.data.kind, self.specs, tuple(shared), tuple(own))

    def sizes(self) -> Sizes:
        """Of data."""
        return sizes_of(self.own)

    def run(self, tensors: Sequence[Tensor]) -> MetaResult:
        """The eager meta-step on other tensors of the same kind."""
        rest = iter(tensors)
        filled = [
            [next(rest) if isinstance(x, Tensor) else x for x in part]
            for part in (self.shared, self.own)
        ]
        meta, frozen, buffers, step_weights = unflatten(filled[0], self.specs[0])
        data, seeds, weights, cotangents = unflatten(filled[1], self.specs[1])
        program = self.program
        forward = replace(program.forward, frozen=frozen, buffers=buffers, fuses=True)
        return meta_step(
            Call(
                replace(program, forward=forward, chunk=len(seeds), uncertain=False),
                meta,
                self.call.data.of_tree(data),
                seeds,
                weights,
                step_weights,
                cotangents,
            )
        )


def flattened(call: Call) -> FlatCall:
    """The arguments of `meta_step`; tensors with a ``tasks`` dimension become contiguous.

    Raises:
        UncapturableError: a sparse tensor or a subclass without memory is among them.
    """
    forward, by_step = call.program.forward, list(call.step_weights)
    known = None if call.known is None or call.cotangents is not None else call.known
    if known is not None and known.applied is call.program and known.specs is not None:
        held = *forward.frozen.values(), *forward.buffers.values()
        shared: list[Any] = [*call.meta.tensors(), *held, *by_step]
        own, specs = [*flatten(call.data.tree())[0], call.seeds, call.weights, None], known.specs
    else:
        shared, shared_spec = flatten((call.meta, forward.frozen, forward.buffers, by_step))
        own, own_spec = flatten((call.data.tree(), call.seeds, call.weights, call.cotangents))
        specs = shared_spec, own_spec
        if known is not None and known.applied is call.program:
            known.specs = specs
    return FlatCall(
        call,
        [_dense(x.detach()) if isinstance(x, Tensor) else x for x in shared],
        [_strided(x).contiguous() if isinstance(x, Tensor) else x for x in own],
        specs,
        call.seeds,
    )


def _dense(x: Tensor) -> Tensor:
    """x, or a copy where its elements overlap or have gaps between them."""
    if _strided(x).is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(x):
        return x
    return x.contiguous()


def _strided(x: Tensor) -> Tensor:
    """x, if it has memory that a recording could be given other numbers in."""
    if x.layout is not torch.strided:
        raise UncapturableError(f"a tensor that it is given has the layout {x.layout}")
    if x.numel() and not address(x):
        raise UncapturableError(f"it is given a {type(x).__name__}, which has no memory of its own")
    return x


@dataclass(frozen=True)
class Layout:
    """How a flat list stands for a `MetaResult`: first what has a task dimension, then the sums."""

    by_task: tuple[list[bool], Spec]
    sums: tuple[list[bool], Spec]
    plain: list[Any]

    @property
    def split(self) -> int:
        """How many tensors have a task dimension."""
        return sum(self.by_task[0])

    def result(self, tensors: Sequence[Tensor]) -> MetaResult:
        """The `MetaResult` whose tensors these are, in order."""
        rest, plain = iter(tensors), iter(self.plain)
        trees = [
            unflatten([next(rest) if tensor else next(plain) for tensor in mask], spec)
            for mask, spec in (self.by_task, self.sums)
        ]
        losses, outputs, buffers = trees[0]
        return MetaResult(losses, outputs, trees[1], buffers)


def laid_out(result: MetaResult) -> tuple[list[Tensor], Layout]:
    """A result as a flat list, and how to read it."""
    tensors: list[Tensor] = []
    plain: list[Any] = []
    parts = []
    for tree in ((result.losses, result.outputs, result.buffers), result.gradient):
        leaves, spec = flatten(tree)
        mask = [isinstance(x, Tensor) for x in leaves]
        tensors += [x for x in leaves if isinstance(x, Tensor)]
        plain += [x for x in leaves if not isinstance(x, Tensor)]
        parts.append((mask, spec))
    return tensors, Layout(parts[0], parts[1], plain)
