"""What a task is made of: `Batch` (inputs and targets) and `Episodes` (many tasks at once)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves, tree_map_only

Tree = Any
"""A tensor, or a tuple, list or dict of trees."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of one support or query set.

    Attributes:
        inputs: a tree of tensors; the model is called as ``model(x)`` for a tensor, ``model(*x)``
            for a tuple or list and ``model(**x)`` for a dict. Another mapping, such as what a
            tokenizer returns, becomes a dict. Inside `Episodes` every tensor is
            ``[tasks, examples, ...]``; for one task, as `MAML.adapt_to` takes it,
            ``[examples, ...]``.
        targets: what the loss is given as its second argument, with the same leading dimensions;
            None where it needs none (`fastmaml.losses.own`).
    """

    inputs: Tree
    targets: Tree = None

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            tree = getattr(self, name)
            if isinstance(tree, Mapping) and type(tree) not in SUPPORTED_NODES:  # no tree by itself
                object.__setattr__(self, name, dict(tree))
        for x in tree_leaves((self.inputs, self.targets)):
            if not isinstance(x, Tensor | bool | int | float | str | None):
                raise ValueError(
                    f"a Batch holds a {type(x).__name__}: give tensors, in tuples, lists or dicts "
                    "(torch.as_tensor converts arrays)."
                )
            if isinstance(x, Tensor) and x.layout is not torch.strided:
                raise ValueError(
                    f"a Batch holds a tensor of the layout {x.layout}, which cannot be split into "
                    "tasks: give a dense one (x.to_dense(), padded where sizes differ), or the "
                    "indices and values as two tensors."
                )

    def tensors(self) -> list[Tensor]:
        """Every tensor of the inputs and targets."""
        inputs = self.inputs if type(self.inputs) is list else [self.inputs]
        if all(isinstance(x, Tensor) for x in (*inputs, self.targets)):
            return [*inputs, self.targets]  # at every meta-step, and a tree is slow to walk
        return [x for x in tree_leaves((self.inputs, self.targets)) if isinstance(x, Tensor)]

    def map(self, function: Any) -> Batch:
        """A batch with `function` applied to every tensor."""
        return Batch(
            tree_map_only(Tensor, function, self.inputs),
            tree_map_only(Tensor, function, self.targets),
        )

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """As `torch.Tensor.to`, for every tensor; a dtype concerns floating-point tensors only."""
        return self.map(lambda x: _to(x, *args, **kwargs))


@dataclass(frozen=True)
class Episodes:
    """A meta-batch: the support and query sets of ``tasks`` tasks.

    Every tensor has the leading dimension ``tasks``, then the examples:
    ``[tasks, ways·shots, ...]`` in the support and ``[tasks, ways·queries, ...]`` in the query set.

    Attributes:
        support: what the inner loop adapts to.
        query: what adapted parameters are for.
        later: the support sets of inner steps 1, 2, ..., where each step has one of its own, of
            whatever size (`support` is that of step 0); empty: every step is on `support`.

    Raises:
        ValueError: a tensor without these two dimensions, an empty set, or sizes that disagree.
    """

    support: Batch
    query: Batch
    later: tuple[Batch, ...] = field(default=(), kw_only=True)

    @classmethod
    def of_steps(cls, supports: Sequence[Batch], query: Batch) -> Episodes:
        """Those with a support set for each inner step, as ``maml(supports, query)`` takes them."""
        if isinstance(supports, Batch) or not isinstance(supports, list | tuple):
            raise ValueError(
                f"supports is a {type(supports).__name__}: give a list of Batch, a support set for "
                "each inner step; Episodes(support, query) has a single one for all."
            )
        if not supports:
            raise ValueError("supports is empty: give a support set for each inner step.")
        first, *later = supports
        return Episodes(first, query, later=tuple(later))

    def __post_init__(self) -> None:
        tasks = {_check(name, batch) for name, batch in self.sets().items()}
        if len(tasks) > 1:
            raise ValueError(
                f"support and query hold different numbers of tasks: {sorted(tasks)}. "
                "Every tensor of a meta-batch has the same leading dimension, one entry a task."
            )

    @property
    def tasks(self) -> int:
        """The number of tasks, T."""
        return self.support.tensors()[0].shape[0]

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int | slice) -> Episodes:
        """The tasks of a slice, or one task (still with its leading dimension, of size 1)."""
        if isinstance(index, int):
            if not -self.tasks <= index < self.tasks:
                raise IndexError(f"task {index} of {self.tasks}")
            index %= self.tasks
            index = slice(index, index + 1)
        return Episodes.map(self, lambda x: x[index])

    def __iter__(self) -> Iterator[Episodes]:
        return (self[i] for i in range(self.tasks))

    @property
    def kind(self) -> None:
        """None: `tree` says everything about episodes."""

    def named(self) -> dict[str, list[Tensor]]:
        """The tensors of each set."""
        found = {"support set": self.support.tensors(), "query set": self.query.tensors()}
        for i, batch in enumerate(self.later, 1):
            found[f"support set of inner step {i}"] = batch.tensors()
        return found

    def sets(self) -> dict[str, Batch]:
        """Every set, by what errors call its inputs and targets."""
        later = {f"support of inner step {i}": batch for i, batch in enumerate(self.later, 1)}
        return {"support": self.support, "query": self.query} | later

    def support_of(self, step: int) -> Batch:
        """What inner step 0, 1, ... adapts to; beyond the last set of its own, that one."""
        return (self.support, *self.later)[min(step, len(self.later))]

    def tree(self) -> tuple[tuple[Tree, Tree], ...]:
        """Inputs and targets as tuples: of the support, the query and the later support sets."""
        return tuple([(b.inputs, b.targets) for b in (self.support, self.query, *self.later)])

    def of_tree(self, tree: Any) -> Episodes:
        """Other episodes, of what `tree` gives."""
        support, query, *later = (Batch(*part) for part in tree)
        return Episodes(support, query, later=tuple(later))

    def map(self, function: Any) -> Episodes:
        """Episodes with `function` applied to every tensor."""
        later = tuple(batch.map(function) for batch in self.later)
        return Episodes(self.support.map(function), self.query.map(function), later=later)

    def to(self, *args: Any, **kwargs: Any) -> Episodes:
        """As `torch.Tensor.to`, for every tensor; a dtype concerns floating-point tensors only."""
        return Episodes.map(self, lambda x: _to(x, *args, **kwargs))


def without_inference_mode(episodes: Episodes) -> Episodes:
    """The same episodes in tensors that autograd accepts."""
    if not any(x.is_inference() for tensors in episodes.named().values() for x in tensors):
        return episodes
    return Episodes.map(episodes, torch.clone)


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not x.is_floating_point():
        args = tuple(a for a in args if not isinstance(a, torch.dtype))
        kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
    return x.to(*args, **kwargs) if args or kwargs else x


def _check(name: str, batch: Batch) -> int:
    """The number of tasks of a batch whose shapes are right."""
    if not isinstance(batch, Batch):
        raise ValueError(f"{name} is a {type(batch).__name__}; give a Batch(inputs, targets).")
    inputs = _sizes(f"{name}.inputs", batch.inputs)
    targets = inputs if batch.targets is None else _sizes(f"{name}.targets", batch.targets)
    tasks = {size[0] for size in inputs + targets}
    if len(tasks) > 1:
        raise ValueError(
            f"the inputs and targets of {name} hold different numbers of tasks: {sorted(tasks)}. "
            "Every tensor of a meta-batch has the same leading dimension, one entry a task."
        )
    # One tensor that agrees is enough: others may have rows of another kind (a graph's edges).
    if not {size[1] for size in inputs} & {size[1] for size in targets}:
        raise ValueError(
            f"{name}.inputs has {inputs[0][1]} examples a task and {name}.targets "
            f"{targets[0][1]}; their second dimensions must agree."
        )
    return tasks.pop()


def _sizes(name: str, tree: Tree) -> list[torch.Size]:
    """The sizes ``[tasks, examples]`` of every tensor of a tree."""
    tensors = [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    if not tensors:
        raise ValueError(f"{name} holds no tensor (it is a {type(tree).__name__}).")
    for x in tensors:
        if x.ndim < 2:
            raise ValueError(
                f"{name} has shape {list(x.shape)}; it needs the dimensions [tasks, examples, "
                "...]. Add a leading one with x.unsqueeze(0) for a single task."
            )
        if 0 in x.shape[:2]:
            raise ValueError(
                f"{name} is empty: its shape is {list(x.shape)}. Every task needs at least one "
                "support and one query example."
            )
    return [x.shape[:2] for x in tensors]
