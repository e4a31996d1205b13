"""`PerTask`: your own function of one task, for all tasks at once (``@maml.per_task``)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from fastmaml.engine.base.dynamo import outside_compilers
from fastmaml.engine.base.held_output import HeldOutput
from fastmaml.engine.base.turns import in_turn
from fastmaml.engine.guards.plans import Plans
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.planning.plan import Asked, Plan
from fastmaml.engine.planning.planner import plan_function
from fastmaml.engine.recording.arguments import FlatCall, flattened
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.executors import make_executor
from fastmaml.engine.recording.tape import UncapturableError
from fastmaml.engine.step.checks import check_reach
from fastmaml.engine.step.data import TaskArguments
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Call
from fastmaml.engine.step.rerun_guard import RerunGuard
from fastmaml.engine.step.user_function import UserFunction
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import GradientMethod
from fastmaml.maml.admit import admit_function
from fastmaml.maml.again import Again
from fastmaml.maml.execute import check, execute
from fastmaml.maml.output import MetaOutput
from fastmaml.maml.plan import plan_of

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML

_log = logging.getLogger("fastmaml")


@final
class PerTask:
    """``run(*arguments)`` calls ``function(learner, *argument_of_one_task)`` for every task.

    The function is written as for one task, with learn2learn's verbs: its first argument is the
    learner, which it calls and adapts as often as it likes, and it returns the query loss, or a
    pair of it and a tree of tensors (metrics, outputs). It runs once for all tasks (batched by vmap
    where that is possible, else task by task) and, recorded at its first call for every kind of
    arguments, is replayed later without its Python code: it must compute with tensors alone. What
    it prints appears when it is recorded.

    Numbers that it returns beside the loss become tensors ``[tasks]``. A number that is read from a
    tensor (``accuracy.item()``) is right, but makes the function run task by task, never recorded,
    which is many times slower: return the tensor.

    Normalisation uses the statistics of the batch at hand, or with ``batch_norm="module"`` in
    ``eval()`` the running ones. These are never written.

    Args:
        maml: whose model, rule, executor and backend are used.
        function: of (learner, one task's arguments); its name and docstring are this object's.
        learns: whether a meta-gradient is ever wanted; else any gradient method will do.
        given: what of the function is the user's, where it is only reached through one of ours.

    Raises:
        ValueError: settings of the `MAML` that have no meaning here.
    """

    def __init__(
        self, maml: MAML, function: Callable[..., Any], *, learns: bool = True, given: Any = None
    ) -> None:
        method = maml.gradient if learns else None
        if method is not None and not (method.one_graph and len(_kinds_of_steps(method)) == 1):
            raise ValueError(
                f"gradient={maml.gradient} decides how an inner loop is differentiated that "
                "fastmaml runs; per_task differentiates what you wrote. Leave it out, use "
                "FirstOrder(), or call maml(episodes)."
            )
        if maml.head is not None:
            raise ValueError(
                f"per_task needs the model's own head: leave out head={maml.head}, or call "
                "maml(episodes)."
            )
        functools.update_wrapper(self, function, updated=())
        self.maml, self.function, self._given = maml, function, given
        self._execute = make_executor(maml.executor, maml.spot_checks)
        self._plans: Plans[Plan] = Plans()
        self._told = False
        self._turns = maml._turns

    def __call__(self, *arguments: Any, **keywords: Any) -> MetaOutput:
        """Run all tasks.

        Args:
            arguments: trees of tensors ``[tasks, ...]``; numbers and strings in them are the same
                for all tasks. Or one `Episodes`, for which the function gets two `Batch`: support
                and query; where each inner step has a support set of its own, the first is a list.
            keywords: more of them, by the names that the function has for them.

        Returns:
            A `MetaOutput`, not what the function returns: `loss` is the mean loss, whose
            ``backward()`` gives the meta-gradient, `losses` are those of the tasks ``[tasks]``, and
            `outputs` is what the function returned beside the loss, every tensor ``[tasks, ...]``.

        Raises:
            ValueError: no tensor, or different numbers of tasks; something beside the loss that is
                no tree of tensors and numbers.
            RuntimeError: the loss does not depend on the learner's parameters.
            NonFiniteLoss: a loss or the meta-gradient is not finite (with `check_finite`).
        """
        found: MetaOutput = outside_compilers(self._run)(arguments, keywords)
        return found

    @in_turn
    def _run(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> MetaOutput:
        maml, learns = self.maml, torch.is_grad_enabled()
        held, data = maml._stock.take(maml.module), _data(arguments, keywords)
        first_order = not learns or maml._first_order
        function = UserFunction(self.function, first_order, learns, self._given)
        call = admit_function(maml, held, data, function)
        make = partial(self._planned, held)
        plan = plan_of(maml, self._plans, held, call, function, maml.executor, make)
        call = call._replace(program=plan.applied(call.program))
        executor = self._execute if plan.recorded else meta_step
        if learns:
            check_reach(plan.unreached, data)
            out, result = execute(maml, held, call, executor, None)
            check(maml, call, result)
            return out
        with maml._turns, RerunGuard(maml.module, data, held, call.program):
            result = executor(call)
        return MetaOutput(result.losses.mean(), result.losses, result.outputs, None)

    @in_turn
    def again(self, arguments: tuple[Any, ...], last: int) -> Again | None:
        """What replays the call for such arguments, of which the last tensors may be others.

        For the while in which nothing of what it depends on changes. No gradients.

        Args:
            arguments: that it was called with.
            last: how many of the leaves, at their end, are given anew each time.

        Returns:
            None where the call is not replayed from a recording on the CPU.
        """
        maml, data = self.maml, _data(arguments, {})
        held, function = (
            maml._stock.take(maml.module),
            UserFunction(self.function, True, False, self._given),
        )
        execute = self._execute
        if not (isinstance(execute, Captured) and held.device.type == "cpu"):
            return None
        seeds = torch.zeros(data.tasks, dtype=torch.int64)  # draws nothing
        call = admit_function(maml, held, data, function, seeds)
        plan = plan_of(maml, self._plans, held, call, function, maml.executor)
        call = call._replace(program=plan.applied(call.program))
        if not plan.recorded:
            return None
        try:
            flat = flattened(call)
            return Again(maml, held, flat, execute.recordings(flat.chunks()), last)
        except UncapturableError:  # it ran eagerly then, and does so again
            return None

    def _planned(self, held: Inventory, call: Call, asked: Asked) -> Plan:
        """Try the function on one and two tasks, and record it where it can be."""
        with RerunGuard(self.maml.module, call.data, held):
            return self._tried(call, asked)

    def _tried(self, call: Call, asked: Asked) -> Plan:
        forward = replace(
            call.program.forward, own_statistics=self._own_statistics(), keeps_buffers=False
        )
        call = call.by(forward=forward)
        with torch.enable_grad(), HeldOutput():
            plan = plan_function(call, asked)
        if plan.refusal:
            _log.warning(
                "a per-task function runs one task at a time: %s%s",
                plan.refusal,
                _way_out(plan.refusal),
            )
        if not isinstance(self._execute, Captured):
            return plan
        try:
            planned = call._replace(program=plan.applied(call.program))
            self._record(self._execute, flattened(planned))
        except UncapturableError as error:
            what = f"a per-task function cannot be recorded: {error}"
            if self._execute.required:
                raise RuntimeError(
                    f"{what}. Use executor='eager', or None to let it be chosen."
                ) from None
            _log.warning("%s; it runs eagerly at every call.%s", what, _way_out(what))
            # Called one by one from Python, the ops of a backend cost more than they save.
            backend = plan.backend if self.maml.backend else "reference"
            restless = plan.depends.restless
            return replace(plan, backend=backend, restless=restless, recorded=False)
        return plan

    def _record(self, execute: Captured, flat: FlatCall) -> None:
        """Record the chunks that such a call needs, and print what the function does, once."""
        size, rest = flat.program.chunk, flat.tasks % flat.program.chunk
        with HeldOutput() as held_back:
            refusal = _refusal(execute, flat.chunk(0, size))
        if refusal is not None:
            raise refusal
        if held_back.printed:
            held_back.release()
            _log.warning(
                "the per-task function prints: it will not when it is replayed. Return what you "
                "want to see, or use executor='eager'."
            )
        if rest:
            with HeldOutput():
                _refusal(execute, flat.chunk(flat.tasks - rest, flat.tasks))

    def _own_statistics(self) -> bool:
        """Whether layers normalise by the batch at hand, whatever they have gathered."""
        maml = self.maml
        layers = [m for m in maml.module.modules() if isinstance(m, _NormBase)]
        modes = {m.training for m in layers if m.running_mean is not None}
        if maml.batch_norm == "batch" or not modes:
            return True
        if len(modes) == 2:
            raise ValueError(
                "some of the model's normalisation layers are in train() and some in eval(), and "
                'per_task runs all alike: make the MAML with batch_norm="batch" (of a '
                'learn2learn learner: maml.fast(batch_norm="batch")), or set one mode.'
            )
        if modes == {True} and not self._told:
            self._told = True
            _log.info(
                "per_task normalises by the batch at hand, as the model's train() says, and does "
                "not write the model's running statistics: batch_norm='batch', in effect."
            )
        return modes == {True}


def _kinds_of_steps(method: GradientMethod) -> set[bool]:
    """Whether inner gradients are differentiated: one answer, where all steps are alike."""
    many = 1000  # a function may take any number of steps
    return {method.differentiates(step, many) for step in range(many)}


def _refusal(execute: Captured, flat: FlatCall) -> UncapturableError | None:
    """Record a chunk; why that cannot be."""
    try:
        execute.recording(flat)
    except UncapturableError as error:
        return error
    return None


def _data(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Episodes | TaskArguments:
    """What tasks are made of, checked."""
    if len(arguments) == 1 and isinstance(arguments[0], Episodes) and not keywords:
        return arguments[0]
    data = TaskArguments.of(arguments, keywords)
    leaves, tensors = data.leaves, data.tensors()
    sizes = {len(x) if x.ndim else None for x in tensors}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            "a per-task function was given tensors of the shapes "
            f"{[list(x.shape) for x in tensors]}: give trees of tensors whose first dimension is "
            "the tasks, at least one, or Episodes."
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError(
            "an argument of a per-task function requires a gradient, which it does not get: the "
            "meta-gradient reaches the parameters of maml's own model alone. Make what computed it "
            "a part of the model (scope= says what adapts), or detach() it."
        )
    for x in leaves:
        if not isinstance(x, Tensor | bool | int | float | str | None):
            raise ValueError(
                f"a per-task function was given a {type(x).__name__}: give tensors, numbers and "
                "strings, in tuples, lists or dicts (torch.as_tensor converts arrays)."
            )
    return data


def _way_out(refusal: str) -> str:
    """What to write instead, where that can be told."""
    if ".item()" in refusal or "_local_scalar_dense" in refusal:
        return " Return tensors, not numbers: accuracy, not accuracy.item()."
    if "_unique2" in refusal:
        return " Split tasks by slices, or with partition_task(x, y, shots, ways=ways)."
    return ""
