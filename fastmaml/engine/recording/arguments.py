"""A meta-step's arguments as a flat list of tensors, and its result as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastmaml.engine.base.storages import address
from fastmaml.engine.base.trees import Spec, flatten, unflatten
from fastmaml.engine.recording.tape import UncapturableError
from fastmaml.engine.step.meta_step import MetaResult, Program, meta_step
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.gradients.base import Meta

Function = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Flat:
    """The arguments of a meta-step: what all tasks share, and what has a ``tasks`` dimension.

    Attributes:
        program: what runs; frozen parameters and buffers are among `shared`.
        step_weights: as for `meta_step`.
        shared: leaves of (meta-parameters, frozen parameters, buffers).
        own: leaves of (support, query, seeds, weights, cotangents).
        specs: the trees of both.
        seeds: ``[tasks]``, one of `own`.
    """

    program: Program
    step_weights: tuple[float, ...]
    shared: list[Any]
    own: list[Any]
    specs: tuple[Spec, Spec]
    seeds: Tensor

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self.seeds)

    def chunk(self, begin: int, end: int) -> Flat:
        """The arguments of these tasks."""
        if (begin, end) == (0, self.tasks):
            return self
        own = [x[begin:end] if isinstance(x, Tensor) else x for x in self.own]
        return replace(self, own=own, seeds=self.seeds[begin:end])

    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [x for x in (*self.shared, *self.own) if isinstance(x, Tensor)]

    def meta(self) -> Meta:
        """The meta-parameters."""
        meta: Meta = unflatten(self.shared, self.specs[0])[0]
        return meta

    def kind(self) -> Any:
        """Everything but the numbers in the tensors."""
        leaves = (
            (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x
            for x in (*self.shared, *self.own)
        )
        return (self.step_weights, self.specs, tuple(leaves))

    def run(self, tensors: Sequence[Tensor]) -> MetaResult:
        """The eager meta-step on other tensors of the same kind."""
        rest = iter(tensors)
        filled = [
            [next(rest) if isinstance(x, Tensor) else x for x in part]
            for part in (self.shared, self.own)
        ]
        meta, frozen, buffers = unflatten(filled[0], self.specs[0])
        support, query, seeds, weights, cotangents = unflatten(filled[1], self.specs[1])
        forward = replace(self.program.forward, frozen=frozen, buffers=buffers, fuses=True)
        program = replace(self.program, forward=forward, chunk=len(seeds), uncertain=False)
        episodes = Episodes(Batch(*support), Batch(*query))
        return meta_step(program, meta, episodes, seeds, weights, self.step_weights, cotangents)


def flattened(
    program: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    weights: Tensor,
    step_weights: Sequence[float],
    cotangents: Any,
) -> Flat:
    """The arguments of `meta_step`; tensors with a ``tasks`` dimension become contiguous.

    Raises:
        UncapturableError: a sparse tensor or a subclass without memory is among them.
    """
    forward = program.forward
    shared, shared_spec = flatten((meta, forward.frozen, forward.buffers))
    batches = ((b.inputs, b.targets) for b in (episodes.support, episodes.query))
    own, own_spec = flatten((*batches, seeds, weights, cotangents))
    return Flat(
        program,
        tuple(step_weights),
        [_dense(x.detach()) if isinstance(x, Tensor) else x for x in shared],
        [_strided(x).contiguous() if isinstance(x, Tensor) else x for x in own],
        (shared_spec, own_spec),
        seeds,
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
        """The tree again."""
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
