"""What is verified: a call of a `MAML`, or of one of its per-task functions."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastmaml.engine.derivatives.copying import deep_copy
from fastmaml.engine.step.data import TaskArguments, mapped
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import FirstOrder
from fastmaml.maml import MAML, MetaOutput, PerTask
from fastmaml.measure.verify.plain_learner import PlainLearner
from fastmaml.measure.verify.plain_loop import task_loss

OWN = ("reference", "tolerance", "dtype")
"""The keywords that `verify` keeps to itself."""


class Verified(ABC):
    """A call that gives a meta-gradient; `str` names it."""

    @property
    @abstractmethod
    def maml(self) -> MAML:
        """Whose meta-gradient it is."""

    @property
    @abstractmethod
    def tasks(self) -> int:
        """The number of tasks, T."""

    @property
    @abstractmethod
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keywords, which a reference gets as well."""

    @abstractmethod
    def copy(self, dtype: torch.dtype | None) -> Verified:
        """The same call of a copy of the `MAML`, in `dtype`; None: as it is."""

    @abstractmethod
    def run(self, first_order: bool = False) -> MetaOutput:
        """What fastmaml gives, or gives in first order."""

    @abstractmethod
    def losses(self) -> Iterator[Tensor]:
        """The query loss of each task in plain PyTorch."""


def verified(maml: Any, data: tuple[Any, ...], keywords: dict[str, Any]) -> Verified:
    """The call that is meant.

    Raises:
        ValueError: it is none that could be verified.
    """
    if isinstance(maml, PerTask):
        return TaskFunction(maml, data, keywords)
    if not isinstance(maml, MAML):
        raise ValueError(
            f"maml is a {type(maml).__name__}; give the fastmaml.MAML itself (of a wrapper such as "
            "DistributedDataParallel, its .module), or what @maml.per_task makes of a function."
        )
    found = (*data, *(x for name, x in keywords.items() if name == "episodes"))
    if len(found) != 1 or keywords.keys() - {"episodes"} or not isinstance(found[0], Episodes):
        got = [type(x).__name__ for x in data] + [f"{name}=" for name in keywords]
        raise ValueError(
            f"after the MAML, verify got {', '.join(got) or 'nothing'}: give one fastmaml.Episodes "
            "(of a support set for each inner step: Episodes.of_steps(supports, query)). Other "
            "arguments are for functions of maml.per_task."
        )
    return MetaStep(maml, found[0])


@final
@dataclass(frozen=True)
class MetaStep(Verified):
    """``maml(episodes)``."""

    learner: MAML
    episodes: Episodes

    def __str__(self) -> str:
        return "maml(episodes)"

    @property
    def maml(self) -> MAML:
        """See `Verified`."""
        return self.learner

    @property
    def tasks(self) -> int:
        """See `Verified`."""
        return self.episodes.tasks

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The episodes."""
        return (self.episodes,), {}

    def copy(self, dtype: torch.dtype | None) -> MetaStep:
        """See `Verified`."""
        return MetaStep(_copied(self.learner, dtype), _converted(self.episodes, dtype))

    def run(self, first_order: bool = False) -> MetaOutput:
        """The meta-step."""
        found: MetaOutput = self.learner(
            self.episodes, gradient=FirstOrder() if first_order else None
        )
        return found

    def losses(self) -> Iterator[Tensor]:
        """See `Verified`."""
        method, head = self.learner.gradient, self.learner.head
        known = method is None or method.exact or method.one_graph
        if head is not None or not known:
            what = method if head is None else head
            raise ValueError(f"there is no plain loop to compare {what} with: give reference=.")
        return (task_loss(self.learner, task) for task in self.episodes)


@final
@dataclass(frozen=True)
class TaskFunction(Verified):
    """``function(*arguments, **keywords)`` of a function that ``@maml.per_task`` decorates."""

    function: PerTask
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.function.function).parameters
        taken = [name for name in OWN if name in parameters]
        if taken:
            raise ValueError(
                f"{self} has a parameter {taken[0]!r}, which is one of verify's: rename that of "
                "the function."
            )

    def __str__(self) -> str:
        function = self.function.function
        return f"{getattr(function, '__name__', type(function).__name__)}(...)"

    @property
    def maml(self) -> MAML:
        """See `Verified`."""
        return self.function.maml

    @property
    def tasks(self) -> int:
        """See `Verified`."""
        return TaskArguments.of(self.arguments, self.keywords).tasks

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Those of all tasks."""
        return self.arguments, self.keywords

    def copy(self, dtype: torch.dtype | None) -> TaskFunction:
        """See `Verified`. The user's function stays what it is, and what it refers to."""
        maml = _copied(self.maml, dtype)
        arguments = tuple(_converted(x, dtype) for x in self.arguments)
        keywords = {name: _converted(x, dtype) for name, x in self.keywords.items()}
        return TaskFunction(maml.per_task(self.function.function), arguments, keywords)

    def run(self, first_order: bool = False) -> MetaOutput:
        """All tasks at once."""
        method = self.maml.gradient
        if first_order:
            self.maml.gradient = FirstOrder()
        try:
            return self.function(*self.arguments, **self.keywords)
        finally:
            self.maml.gradient = method

    def losses(self) -> Iterator[Tensor]:
        """Those that the function returns for a clone each."""
        data = TaskArguments.of(self.arguments, self.keywords)
        for task in range(data.tasks):
            one = mapped(data[task], lambda x: x.squeeze(0))
            arguments, keywords = one.of_task(one.leaves)
            clone = self.maml.clone(allow_unused=True, allow_nograd=True)  # as per_task does
            clone.backend = "reference"
            learner = PlainLearner(clone)
            found = self.function.function(learner, *arguments, **keywords)
            yield found[0] if isinstance(found, tuple) and len(found) == 2 else found


def _copied(maml: MAML, dtype: torch.dtype | None) -> MAML:
    copy = deep_copy(maml)
    return copy if dtype is None else copy.to(dtype)


def _converted(tree: Any, dtype: torch.dtype | None) -> Any:
    """A copy with floating-point tensors in `dtype`; None for their own."""
    if isinstance(tree, Episodes):
        return tree.map(lambda x: _converted(x, dtype))
    return tree_map_only(Tensor, partial(_copied_tensor, dtype=dtype), tree)


def _copied_tensor(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x.to(dtype, copy=True) if dtype is not None and x.is_floating_point() else x.clone()
