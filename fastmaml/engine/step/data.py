"""What tasks are made of, as a meta-step takes it: episodes, or a user's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final

from torch import Tensor

from fastmaml.engine.base.trees import Spec, flatten, unflatten
from fastmaml.episodes.batch import Batch, Episodes

D = TypeVar("D", bound="TaskData")


class TaskData(Protocol):
    """Tensors of ``[tasks, ...]``: `Episodes`, or the `TaskArguments` of a user's function."""

    @property
    def tasks(self) -> int:
        """The number of tasks, T."""

    @property
    def kind(self) -> Any:
        """Hashable: what `of_tree` knows besides the tree."""

    def __getitem__(self: D, index: int | slice) -> D: ...

    def named(self) -> dict[str, list[Tensor]]:
        """The tensors, by what errors call them."""

    def tree(self) -> Any:
        """Plain containers of the same leaves."""

    def of_tree(self: D, tree: Any) -> D:
        """The same of other leaves."""


@final
@dataclass(frozen=True)
class TaskArguments:
    """``function(learner, *arguments, **keywords)`` for every task.

    Attributes:
        leaves: of (arguments, keywords), every tensor ``[tasks, ...]``.
        spec: their tree.
        sets: whether the first argument stands for `Batch`, the support and the query set.
    """

    leaves: list[Any]
    spec: Spec
    sets: bool = False

    @classmethod
    def of(cls, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> TaskArguments:
        """Those of a call; one `Episodes` becomes its two sets."""
        sets = len(arguments) == 1 and isinstance(arguments[0], Episodes)
        leaves, spec = flatten((arguments[0].tree() if sets else arguments, keywords))
        return cls(leaves, spec, sets)

    def tensors(self) -> list[Tensor]:
        """The leaves that are tensors, each ``[tasks, ...]``."""
        return [x for x in self.leaves if isinstance(x, Tensor)]

    @property
    def tasks(self) -> int:
        """The number of tasks, from the first tensor."""
        return len(self.tensors()[0])

    @property
    def kind(self) -> Any:
        """See `TaskData`."""
        return self.spec, self.sets

    def __getitem__(self, index: int | slice) -> TaskArguments:
        """The tasks of a slice, or one task, still with its leading dimension."""
        part = index if isinstance(index, slice) else slice(index, index + 1)
        return self.of_tree([x[part] if isinstance(x, Tensor) else x for x in self.leaves])

    def named(self) -> dict[str, list[Tensor]]:
        """See `TaskData`."""
        return {"arguments": self.tensors()}

    def tree(self) -> list[Any]:
        """See `TaskData`."""
        return self.leaves

    def of_tree(self, tree: list[Any]) -> TaskArguments:
        """See `TaskData`."""
        return TaskArguments(tree, self.spec, self.sets)

    def of_task(self, leaves: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """One task's arguments and keywords, of leaves without their first dimension."""
        arguments, keywords = unflatten(leaves, self.spec)
        return (sets_of(arguments) if self.sets else list(arguments)), keywords


def sets_of(parts: Any) -> list[Any]:
    """Support and query set, of `Episodes.tree`; a list of them where each step has its own."""
    support, query, *later = (Batch(*part) for part in parts)
    return [[support, *later] if later else support, query]


def mapped(data: D, function: Callable[[Tensor], Tensor]) -> D:
    """The same with `function` applied to every tensor."""
    leaves, spec = flatten(data.tree())
    found = [function(x) if isinstance(x, Tensor) else x for x in leaves]
    return data.of_tree(unflatten(found, spec))


def tensors_in(data: TaskData) -> list[Tensor]:
    """All tensors of the tasks."""
    return [x for tensors in data.named().values() for x in tensors]


def signature(data: TaskData) -> tuple[Any, ...]:
    """What must be equal for two meta-batches to run the same way."""
    leaves, spec = flatten(data.tree())
    kinds = ((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves)
    return (data.kind, spec, *kinds)
