"""A user's own function of one task, run for all tasks at once and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastmaml.engine.fingerprint import fingerprint
from fastmaml.engine.functional import functional
from fastmaml.engine.inner_loop import InnerLoop
from fastmaml.engine.randomness import step_keys
from fastmaml.engine.trees import Spec, unflatten
from fastmaml.gradients.base import Carry, Meta, MetaGradient, Query, leaves_of, pull_back
from fastmaml.rules.base import Tensors


@final
@dataclass(frozen=True)
class TaskFunction:
    """``function(learner, *arguments)`` returns a task's loss, or (loss, whatever else).

    Attributes:
        function: the user's.
        spec: the tree of its arguments, whose leaves are the support inputs of the episodes, each
            with a second dimension of 1.
        first_order: whether inner gradients are constants unless `adapt` is told otherwise.
    """

    function: Callable[..., Any]
    spec: Spec
    first_order: bool

    def meta_gradient(self, loop: InnerLoop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """As a `GradientMethod`'s: one graph through everything that the function does."""
        with torch.enable_grad():
            meta = leaves_of(meta)
            query = self.query(loop, meta)
            back = pull_back([query.value], [torch.ones_like(query.value)], meta)
        return MetaGradient(*back), [query.detach()]

    def key(self) -> Any:
        """What a recording of it depends on."""
        return fingerprint(self.function), self.spec, self.first_order

    def query(self, loop: InnerLoop, meta: Meta, calls: list[int] | None = None) -> Query:
        """What the function returns for every task; `calls` gets how often it calls the model."""
        start = loop.start(meta)

        def one(leaves: list[Any], seed: Tensor) -> tuple[Tensor, Any]:
            arguments = unflatten(
                [x.squeeze(0) if isinstance(x, Tensor) else x for x in leaves], self.spec
            )
            learner = TaskLearner(loop, meta, start, seed, self.first_order)
            result = self.function(learner, *arguments)
            if calls is not None:
                calls.append(learner.calls)
            loss, more = result if isinstance(result, tuple) and len(result) == 2 else (result, ())
            if not isinstance(loss, Tensor) or loss.ndim != 0:
                got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
                raise ValueError(
                    f"the per-task function returned a loss of {got}: return the scalar query loss "
                    "of one task, or a pair of it and a tree of tensors."
                )
            return loss, more

        leaves = loop.episodes.support.inputs
        losses, outputs = loop.forward.by_task(one, (leaves, loop.seeds))
        value = (losses * loop.objective.weights.to(losses.dtype)).sum()
        if loop.objective.outputs is not None:
            pairs = zip(tree_leaves(outputs), tree_leaves(loop.objective.outputs), strict=True)
            value = value + sum((y * c).sum() for y, c in pairs if c is not None)
        return Query(loop.steps, value, losses, outputs)


@final
class TaskLearner:
    """The model of one task, as its function sees it: call it, and `adapt` it.

    Inside, parameters have the dimension of the tasks, of which the function knows nothing: vmap
    shows it one task, and the gradient of all tasks' losses is taken below vmap, where autograd is.

    Args:
        loop: of the tasks that run together.
        meta: what is meta-learned.
        start: where these tasks begin.
        seed: this task's, by which a vmap is known.
        first_order: whether inner gradients are constants by default.

    Attributes:
        calls: how often the model was called.
    """

    def __init__(
        self, loop: InnerLoop, meta: Meta, start: Carry, seed: Tensor, first_order: bool
    ) -> None:
        self._loop, self._meta, self._carry = loop, meta, start
        self._seed, self._first_order = seed, first_order
        self._level = torch._C._functorch.maybe_get_level(seed)
        self.calls = self._steps = 0

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The model's output with the parameters as they are by now."""
        forward = self._loop.forward
        key = step_keys(self._seed, self.calls, query=False)
        self.calls += 1
        tensors = {**forward.constants({}), **self._meta.shared, **self._parameters()}
        with forward.surroundings(key, {}, {}):
            return functional(forward.model, tensors, inputs, named)

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One inner step on a scalar loss, computed with this learner.

        Args:
            loss: of this task.
            first_order: take the inner gradient as a constant; None as the `MAML` says.
            allow_unused, allow_nograd: accepted as in learn2learn; parameters that the loss does
                not reach, and frozen ones, always stay as they are.

        Raises:
            RuntimeError: the loss is no scalar, or does not depend on the parameters.
        """
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise RuntimeError(f"adapt(loss) needs a scalar loss of one task; this one has {got}.")
        every = self._below(loss)
        names = list(self._carry.parameters)
        if not every.requires_grad:
            raise RuntimeError(
                "the loss given to adapt() does not depend on the learner's parameters: compute it "
                "from learner(inputs), and detach nothing on the way."
            )
        second = not (self._first_order if first_order is None else first_order)
        found = torch.autograd.grad(
            every.sum(), [self._carry.parameters[n] for n in names], create_graph=second,
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        gradient = dict(zip(names, found, strict=True))
        self._carry = self._loop.update(self._steps, self._carry, gradient, self._meta)
        self._steps += 1

    def parameters(self) -> Iterator[Tensor]:
        """This task's adapted parameters, as they are by now."""
        return iter(self._parameters().values())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The same with their names in the model."""
        return iter(self._parameters().items())

    def _parameters(self) -> Tensors:
        return {n: self._above(p) for n, p in self._carry.parameters.items()}

    def _above(self, x: Tensor) -> Tensor:
        """One task's share of ``[tasks, ...]``."""
        if self._level < 0:
            return x.squeeze(0)
        return torch._C._functorch._add_batch_dim(x, 0, self._level)

    def _below(self, x: Tensor) -> Tensor:
        """What stands for all tasks."""
        if self._level < 0 or torch._C._functorch.maybe_get_level(x) != self._level:
            return x
        return torch._C._functorch.get_unwrapped(x)
