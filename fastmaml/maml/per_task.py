"""`PerTask`: your own function of one task, for all tasks at once (``@maml.per_task``)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from fastmaml.engine.base.dynamo import outside_compilers
from fastmaml.engine.base.held_output import HeldBack
from fastmaml.engine.base.seeds import task_seeds
from fastmaml.engine.base.trees import flatten
from fastmaml.engine.base.turns import in_turn
from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.plans import Plans, environment
from fastmaml.engine.planning.plan import plan_function
from fastmaml.engine.recording.arguments import Flat, flattened
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.executors import lanes, make_executor
from fastmaml.engine.recording.tape import UncapturableError
from fastmaml.engine.step.checks import (
    check_device,
    check_finite,
    check_reach,
    check_reached,
    signature,
)
from fastmaml.engine.step.meta_step import MetaResult, Program, meta_step
from fastmaml.engine.step.rerun_guard import Surroundings
from fastmaml.engine.step.user_function import TaskFunction
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.gradients import GradientMethod
from fastmaml.maml.output import MetaOutput, with_gradient
from fastmaml.maml.planned import check_as_made, program_of, settings_key, shapes
from fastmaml.maml.settings import task_weights, weights_by_step

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML

T = TypeVar("T")

_log = logging.getLogger("fastmaml")


@dataclass(frozen=True)
class _Plan:
    """How a kind of call runs; see `TaskForward` and `Program`."""

    own_statistics: bool
    batched: bool
    backend: str
    chunk: int
    unreached: str
    depends: Dependencies
    restless: str
    uncertain: bool
    recorded: bool = True

    def worn_out(self) -> _Plan | None:
        """See `Depending`."""
        return replace(self, uncertain=True, recorded=False, depends=Dependencies.worn_out())

    def applied(self, program: Program, function: TaskFunction) -> Program:
        """The program with what was decided."""
        forward = replace(
            program.forward, own_statistics=self.own_statistics, keeps_buffers=False,
            batched=self.batched, backend=self.backend,
        )  # fmt: skip
        return replace(
            program, forward=forward, chunk=self.chunk, function=function,
            unreached=self.unreached, depends=self.depends, uncertain=self.uncertain,
        )  # fmt: skip


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

    Raises:
        ValueError: settings of the `MAML` that have no meaning here.
    """

    def __init__(self, maml: MAML, function: Callable[..., Any]) -> None:
        method = maml.gradient
        if method is not None and not (method.one_graph and len(_kinds_of_steps(method)) == 1):
            raise ValueError(
                f"gradient={maml.gradient} decides how an inner loop is differentiated that "
                "fastmaml runs; per_task differentiates what you wrote. Leave it out, use "
                "FirstOrder(), or call maml(episodes)."
            )
        if maml.head is not None:
            raise ValueError(
                f"per_task needs the model's own head: leave out head={maml.head.head}, or call "
                "maml(episodes)."
            )
        functools.update_wrapper(self, function, updated=())
        self.maml, self.function = maml, function
        self._execute = make_executor(maml.executor, maml.spot_checks)
        self._plans: Plans[_Plan] = Plans()
        self._told = False
        self._turns = maml._turns

    def __call__(self, *arguments: Any, **keywords: Any) -> MetaOutput:
        """Run all tasks.

        Args:
            arguments: trees of tensors ``[tasks, ...]``; numbers and strings in them are the same
                for all tasks. Or one `Episodes`, for which the function gets two `Batch`: support
                and query.
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
        held = maml._stock.take(maml.module)
        batches = len(arguments) == 1 and isinstance(arguments[0], Episodes)
        packed = arguments[0] if batches and not keywords else None
        episodes, spec = (packed, None) if packed else _packed(arguments, keywords)
        check_device(held.device, episodes)
        meta, seeds = maml._meta(held), task_seeds(episodes.tasks, held.device)
        method = maml.gradient
        first_order = not learns or (method is not None and not method.second_order(1))
        function = TaskFunction(self.function, spec, batches, first_order, learns)
        program = program_of(maml, held, 1, maml.executor, needs_loss=False)
        same = Surroundings(maml.module, episodes, held)
        weights, by_step = (
            task_weights(None, held.dtype, held.device, len(seeds)),
            weights_by_step(None, 1),
        )
        given = (meta, episodes, seeds, weights, by_step, None)

        kind = (
            signature(episodes), spec, held.training, first_order, learns, shapes(meta.adapted),
            environment(held.device.type), settings_key(program), program.forward.backend,
        )  # fmt: skip
        plan = self._plans.find(kind, held.call)
        if plan is None:
            with same:
                program = replace(program, function=function, depends=Dependencies())
                plan = self._plans.keep(kind, self._planned(program, *given))
        program = same.program = plan.applied(program, function)
        execute = self._execute if plan.recorded else meta_step

        def run(cotangents: Any, outputs: Any) -> MetaResult:
            own = (
                task_weights(cotangents, held.dtype, held.device, len(seeds))
                if cotangents
                else weights
            )
            with self._turns, same:
                return execute(program, meta, episodes, seeds, own, by_step, outputs)

        if not learns:
            result = run(None, None)
            return MetaOutput(result.losses.mean(), result.losses, result.outputs, None)
        check_reach(program, episodes)
        out, result = with_gradient(run, flatten(meta)[0], None)
        check_reached(program)
        if maml.check_finite:
            check_finite(program, meta, episodes, seeds, result)
        return out

    def _planned(self, program: Program, *given: Any) -> _Plan:
        """Try the function on one and two tasks, and record it where it can be."""
        maml, own = self.maml, self._own_statistics()
        meta, episodes, seeds = given[:3]
        check_as_made(maml, meta)
        forward = replace(program.forward, own_statistics=own, keeps_buffers=False)
        with torch.enable_grad(), HeldBack():
            program, refusal = plan_function(
                replace(program, forward=forward), meta, episodes, seeds, maml.tasks_chunk,
                maml.memory_budget, maml.backend is not None, lanes(maml.executor, seeds.device),
            )  # fmt: skip
        if refusal:
            _log.warning(
                "a per-task function runs one task at a time: %s%s", refusal, _way_out(refusal)
            )
        forward = program.forward
        plan = _Plan(
            own, forward.batched, forward.backend, program.chunk, program.unreached,
            program.depends, program.depends.restless, program.uncertain,
        )  # fmt: skip
        if not isinstance(self._execute, Captured):
            return plan
        try:
            self._record(self._execute, flattened(program, *given))
        except UncapturableError as error:
            what = f"a per-task function cannot be recorded: {error}"
            if self._execute.required:
                raise RuntimeError(
                    f"{what}. Use executor='eager', or None to let it be chosen."
                ) from None
            _log.warning("%s; it runs eagerly at every call.%s", what, _way_out(what))
            # Called one by one from Python, the ops of a backend cost more than they save.
            backend = plan.backend if maml.backend else "reference"
            restless = program.depends.restless
            return replace(plan, backend=backend, restless=restless, recorded=False)
        return plan

    def _record(self, execute: Captured, flat: Flat) -> None:
        """Record the chunks that such a call needs, and print what the function does, once."""
        size, rest = flat.program.chunk, flat.tasks % flat.program.chunk
        with HeldBack() as held_back:
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
            with HeldBack():
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


def _refusal(execute: Captured, flat: Flat) -> UncapturableError | None:
    """Record a chunk; why that cannot be."""
    try:
        execute.recording(flat)
    except UncapturableError as error:
        return error
    return None


def _packed(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Episodes, Any]:
    """The leaves as the inputs of episodes, each with a second dimension of 1, and their tree."""
    if len(arguments) == 1 and isinstance(arguments[0], Episodes):
        given = arguments[0]
        arguments = tuple((b.inputs, b.targets) for b in (given.support, given.query))
    leaves, spec = flatten((arguments, keywords))
    tensors = [x for x in leaves if isinstance(x, Tensor)]
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
    nothing = torch.zeros(len(tensors[0]), 1, device=tensors[0].device)
    batch = _unchecked(
        Batch,
        inputs=[x.unsqueeze(1) if isinstance(x, Tensor) else x for x in leaves],
        targets=nothing,
    )
    return _unchecked(Episodes, support=batch, query=Batch(nothing, nothing)), spec


def _unchecked(kind: type[T], **fields: Any) -> T:
    """A dataclass whose fields were just checked: its own look at them costs more than all else."""
    made = object.__new__(kind)
    made.__dict__.update(fields)
    return made


def _way_out(refusal: str) -> str:
    """What to write instead, where that can be told."""
    if ".item()" in refusal or "_local_scalar_dense" in refusal:
        return " Return tensors, not numbers: accuracy, not accuracy.item()."
    if "_unique2" in refusal:
        return " Split tasks by slices, or with partition_task(x, y, shots, ways=ways)."
    return ""
