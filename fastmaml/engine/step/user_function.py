"""A user's own function of one task, run for all tasks at once and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from fastmaml.engine.routing.to_ops import OpRouting
from fastmaml.engine.step.data import TaskArguments, TaskData, sets_of
from fastmaml.engine.step.forward import TaskForward
from fastmaml.engine.step.inner_loop import InnerLoop
from fastmaml.engine.step.task_learner import TaskLearner
from fastmaml.gradients.base import (
    GradientMethod,
    Meta,
    MetaGradient,
    Query,
    inner_product,
    leaves_of,
    pull_back,
)


@final
@dataclass(frozen=True)
class UserFunction(GradientMethod):
    """``function(learner, *arguments)`` returns a task's loss, or (loss, whatever else).

    It is differentiated in one graph, whatever it does; the loop gives it the learner alone.

    Attributes:
        function: the user's.
        first_order: whether inner gradients are constants unless `adapt` is told otherwise.
        learns: whether a meta-gradient is wanted.
        given: what of the function is the user's, where it is only reached through one of ours.
    """

    function: Callable[..., Any]
    first_order: bool
    learns: bool = True
    given: Any = None
    runs_loop: ClassVar[bool] = False

    @property
    def code(self) -> Any:
        """The user's function, whose code this method runs."""
        return self.function if self.given is None else (self.function, self.given)

    def differentiates(self, step: int, steps: int) -> bool:
        """Whether `adapt` does, unless it is told otherwise."""
        return not self.first_order

    def meta_gradient(self, loop: Any, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """One graph through everything that the function does."""
        with torch.enable_grad():
            meta = leaves_of(meta)
            query = self.query(loop, meta)
            if not self.learns:
                nothing = MetaGradient(*(dict.fromkeys(part) for part in meta))
                return nothing, [query.detach()]
            if not query.losses.requires_grad:
                raise RuntimeError(
                    "the loss that the per-task function returned does not depend on the learner's "
                    "parameters: compute it from learner(inputs), and detach nothing on the way. "
                    "To evaluate alone, call it under torch.no_grad()."
                )
            back = pull_back([query.value], [torch.ones_like(query.value)], meta)
        return MetaGradient(*back), [query.detach()]

    def query(self, loop: InnerLoop, meta: Meta, calls: list[int] | None = None) -> Query:
        """What the function returns for every task; `calls` gets how often it calls the model."""
        start = loop.start(meta)

        def one(given: Any, seed: Tensor) -> tuple[Tensor, Any]:
            arguments, keywords = _of_task(loop.episodes, given)
            learner = TaskLearner(loop, meta, start, seed, self.first_order)
            with _own_ops(loop.forward):
                result = self.function(learner, *arguments, **keywords)
            if calls is not None:
                calls.append(learner.calls)
            loss, more = result if isinstance(result, tuple) and len(result) == 2 else (result, ())
            if not isinstance(loss, Tensor) or loss.ndim != 0:
                got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
                raise ValueError(
                    f"the per-task function returned a loss of {got}: return the scalar query loss "
                    "of one task, or a pair of it and a tree of tensors."
                )
            return loss, tree_map(lambda x: _as_tensor(x, loss.device), more)

        losses, outputs = loop.forward.by_task(one, (loop.episodes.tree(), loop.seeds), meta.shared)
        value = (losses * loop.objective.weights.to(losses.dtype)).sum()
        if loop.objective.outputs is not None:
            pairs = zip(tree_leaves(outputs), loop.objective.outputs, strict=True)
            value = value + sum(inner_product(y, c) for y, c in pairs if c is not None)
        return Query(loop.steps, value, losses, outputs)


def _of_task(data: TaskData, given: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and keywords, of the leaves of one task."""
    if isinstance(data, TaskArguments):
        return data.of_task(given)
    return sets_of(given), {}


def _as_tensor(x: Any, device: torch.device) -> Tensor | None:
    """A number as a tensor, since every task has its own; tensors and None as they are."""
    if x is None or isinstance(x, Tensor):
        return x
    if isinstance(x, bool | int | float):
        return torch.full((), x, device=device)
    if hasattr(x, "__array__"):  # numpy's
        return torch.tensor(x, device=device)
    raise ValueError(
        f"the per-task function returned a {type(x).__name__} beside the loss: return tensors "
        "(numbers become some), or tuples, lists and dicts of them, so that tasks can be told "
        "apart."
    )


class _OwnOps(TorchFunctionMode):
    """Sends what the function computes by itself, losses above all, to the backend's ops."""

    def __init__(self, ops: OpRouting) -> None:
        super().__init__()
        self.ops = ops

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = self.ops(func, args, kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


def _own_ops(forward: TaskForward) -> AbstractContextManager[Any]:
    if forward.backend == "reference":
        return nullcontext()
    return _OwnOps(OpRouting(forward.backend, own_statistics=False, fuses=forward.fuses))
