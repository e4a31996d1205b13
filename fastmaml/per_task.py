"""`PerTask`: your own function of one task, for all tasks at once (``@maml.per_task``)."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from fastmaml.arguments import task_weights, weights_by_step
from fastmaml.assembly import program_of
from fastmaml.engine.compilers import outside_compilers
from fastmaml.engine.diagnosis import check_device, check_finite, signature
from fastmaml.engine.executors import lanes, make_executor
from fastmaml.engine.inventory import Inventory, take_inventory
from fastmaml.engine.meta_step import MetaResult, Program
from fastmaml.engine.planning import plan_function
from fastmaml.engine.randomness import task_seeds
from fastmaml.engine.surroundings import Surroundings
from fastmaml.engine.task_function import TaskFunction
from fastmaml.engine.trees import flatten
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.gradients import FirstOrder, Unrolled
from fastmaml.output import MetaOutput, with_gradient

if TYPE_CHECKING:
    from fastmaml.maml import MAML

_log = logging.getLogger("fastmaml")


@final
class PerTask:
    """``run(*arguments)`` calls ``function(learner, *argument_of_one_task)`` for every task.

    The function is written as for one task, with learn2learn's verbs: call the learner, `adapt` it
    as often as you like, and return the query loss, or a pair of it and a tree of tensors (metrics,
    outputs). It runs once for all tasks (batched by vmap where that is possible, else task by task)
    and, recorded at its first call for every kind of arguments, is replayed later without its
    Python code: it must compute with tensors alone. What it prints appears when it is recorded.

    Args:
        maml: whose model, rule, executor and backend are used.
        function: of (learner, one task's arguments).

    Raises:
        ValueError: settings of the `MAML` that have no meaning here.
    """

    def __init__(self, maml: MAML, function: Callable[..., Any]) -> None:
        if not isinstance(maml.gradient, Unrolled | FirstOrder | None):
            raise ValueError(
                f"gradient={maml.gradient} decides how an inner loop is differentiated that "
                "fastmaml runs; per_task differentiates what you wrote. Leave it out, use "
                "FirstOrder(), or call maml(episodes)."
            )
        if maml.head is not None or maml.batch_norm != "batch":
            raise ValueError(
                "per_task needs the model's own head and batch_norm='batch': leave out head= and "
                "batch_norm=, or call maml(episodes)."
            )
        self.maml, self.function = maml, function
        self._execute = make_executor(maml.executor)
        self._plans: dict[Any, Program] = {}

    def __call__(self, *arguments: Any) -> MetaOutput:
        """Run all tasks.

        Args:
            arguments: trees of tensors ``[tasks, ...]``; numbers and strings in them are the same
                for all tasks. Or one `Episodes`, for which the function gets two `Batch`: support
                and query.

        Returns:
            `MetaOutput` with the mean loss, whose ``backward()`` gives the meta-gradient, the
            losses ``[tasks]``, and as `outputs` what the function returned beside the loss.

        Raises:
            ValueError: no tensor, or different numbers of tasks.
            NonFiniteLoss: a loss or the meta-gradient is not finite (with `check_finite`).
        """
        found: MetaOutput = outside_compilers(self._run)(arguments)
        return found

    def _run(self, arguments: tuple[Any, ...]) -> MetaOutput:
        maml = self.maml
        held = take_inventory(maml.module)
        episodes, spec = _packed(arguments)
        check_device(held.device, episodes)
        meta, seeds = maml._meta(held), task_seeds(episodes.tasks, held.device)
        first_order = isinstance(maml.gradient, FirstOrder) or not torch.is_grad_enabled()
        function = TaskFunction(_of_batches(self.function, arguments), spec, first_order)
        program = self._planned(function, meta, episodes, seeds, held)
        same = Surroundings(maml.module, episodes, held)

        def run(cotangents: Any, outputs: Any) -> MetaResult:
            weights = task_weights(cotangents, held.first, len(seeds))
            with same:
                by_step = weights_by_step(None, program.steps)
                return self._execute(program, meta, episodes, seeds, weights, by_step, outputs)

        if not torch.is_grad_enabled():
            result = run(None, None)
            return MetaOutput(result.losses.mean(), result.losses, result.outputs, None)
        out, result = with_gradient(run, flatten(meta)[0], None)
        if maml.check_finite:
            check_finite(program, meta, episodes, seeds, result)
        return out

    def _planned(
        self, function: TaskFunction, meta: Any, episodes: Episodes, seeds: Tensor, held: Inventory
    ) -> Program:
        maml = self.maml
        kind = (signature(episodes), held.training, function.first_order)
        program = replace(
            program_of(maml, held, 1, maml.executor, needs_loss=False), function=function
        )
        if kind not in self._plans:
            with torch.enable_grad(), _Watched() as watched:
                self._plans[kind], refusal = plan_function(
                    program, meta, episodes, seeds, maml.tasks_chunk, maml.memory_budget,
                    maml.backend is not None, lanes(maml.executor, seeds.device),
                )  # fmt: skip
            if refusal:
                _log.warning("a per-task function runs one task at a time: %s", refusal)
            if watched.printed and maml.executor != "eager":
                _log.warning(
                    "the per-task function prints: it will not when it is replayed. Return what "
                    "you want to see, or use executor='eager'."
                )
        plan = self._plans[kind]
        forward = replace(
            program.forward, batched=plan.forward.batched, backend=plan.forward.backend
        )
        return replace(program, forward=forward, chunk=plan.chunk)


def _packed(arguments: tuple[Any, ...]) -> tuple[Episodes, Any]:
    """The leaves as the inputs of episodes, each with a second dimension of 1, and their tree."""
    if len(arguments) == 1 and isinstance(arguments[0], Episodes):
        given = arguments[0]
        arguments = tuple((b.inputs, b.targets) for b in (given.support, given.query))
    leaves, spec = flatten(arguments)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    sizes = {len(x) if x.ndim else None for x in tensors}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            "a per-task function was given tensors of the shapes "
            f"{[list(x.shape) for x in tensors]}: give trees of tensors whose first dimension is "
            "the tasks, at least one, or Episodes."
        )
    nothing = torch.zeros(len(tensors[0]), 1, device=tensors[0].device)
    batch = Batch([x.unsqueeze(1) if isinstance(x, Tensor) else x for x in leaves], nothing)
    return Episodes(batch, Batch(nothing, nothing)), spec


def _of_batches(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    if len(arguments) == 1 and isinstance(arguments[0], Episodes):
        return lambda learner, support, query: function(learner, Batch(*support), Batch(*query))
    return function


class _Watched(contextlib.AbstractContextManager["_Watched"], io.TextIOBase):
    """Passes on what is printed, and notes that something was."""

    def __init__(self) -> None:
        self.printed = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Watched:
        self._target = sys.stdout
        self._stack.enter_context(contextlib.redirect_stdout(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def write(self, text: str) -> int:
        self.printed = True
        return self._target.write(text)

    def flush(self) -> None:
        self._target.flush()
