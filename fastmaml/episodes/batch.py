"""What a task is made of: `Batch` (inputs and targets) and `Episodes` (many tasks at once)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
        targets: what the loss is given as its second argument, with the same leading dimensions.
    """

    inputs: Tree
    targets: Tree

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

    Raises:
        ValueError: a tensor without these two dimensions, an empty set, or sizes that disagree.
    """

    support: Batch
    query: Batch

    def __post_init__(self) -> None:
        tasks = {_check(name, getattr(self, name)) for name in ("support", "query")}
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
        return Episodes(self.support.map(lambda x: x[index]), self.query.map(lambda x: x[index]))

    def __iter__(self) -> Iterator[Episodes]:
        return (self[i] for i in range(self.tasks))

    @property
    def kind(self) -> None:
        """None: `tree` says everything about episodes."""

    def named(self) -> dict[str, list[Tensor]]:
        """The tensors of each set."""
        return {"support set": self.support.tensors(), "query set": self.query.tensors()}

    def tree(self) -> tuple[tuple[Tree, Tree], tuple[Tree, Tree]]:
        """Inputs and targets of both sets, as tuples."""
        support, query = self.support, self.query
        return (support.inputs, support.targets), (query.inputs, query.targets)

    def of_tree(self, tree: Any) -> Episodes:
        """Other episodes, of what `tree` gives."""
        return Episodes(*(Batch(*part) for part in tree))

    def to(self, *args: Any, **kwargs: Any) -> Episodes:
        """As `torch.Tensor.to`, for every tensor; a dtype concerns floating-point tensors only."""
        return Episodes(self.support.to(*args, **kwargs), self.query.to(*args, **kwargs))


def without_inference_mode(episodes: Episodes) -> Episodes:
    """The same episodes in tensors that autograd accepts."""
    tensors = [*episodes.support.tensors(), *episodes.query.tensors()]
    if not any(x.is_inference() for x in tensors):
        return episodes
    return Episodes(episodes.support.map(torch.clone), episodes.query.map(torch.clone))


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not x.is_floating_point():
        args = tuple(a for a in args if not isinstance(a, torch.dtype))
        kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
    return x.to(*args, **kwargs) if args or kwargs else x


def _check(name: str, batch: Batch) -> int:
    """The number of tasks of a batch whose shapes are right."""
    if not isinstance(batch, Batch):
        raise ValueError(f"{name} is a {type(batch).__name__}; give a Batch(inputs, targets).")
    inputs, targets = (_sizes(f"{name}.{x}", getattr(batch, x)) for x in ("inputs", "targets"))
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
