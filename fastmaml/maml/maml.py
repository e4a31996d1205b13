"""`MAML`: any module as a meta-learner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmaml import ops
from fastmaml.engine.base.dynamo import outside_compilers
from fastmaml.engine.base.seeds import task_seeds
from fastmaml.engine.base.trees import flatten
from fastmaml.engine.base.turns import Turns, in_turn
from fastmaml.engine.derivatives.copying import adapted_copy
from fastmaml.engine.guards.plans import Plans
from fastmaml.engine.model.buffers import keep_buffers
from fastmaml.engine.model.inventory import Inventory, Stock
from fastmaml.engine.model.refused_models import check_model
from fastmaml.engine.model.scope import Scope, adapted_names
from fastmaml.engine.planning.plan import Plan
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.executors import EXECUTORS, evaluating, make_executor
from fastmaml.engine.routing.called_by_hand import called
from fastmaml.engine.routing.cloning import clone_module
from fastmaml.engine.step import checks
from fastmaml.engine.step.adaptation import evaluate
from fastmaml.engine.step.forward import Loss
from fastmaml.engine.step.head_layer import find_head_layer
from fastmaml.engine.step.meta_step import MetaResult, Program, adapt
from fastmaml.engine.step.rerun_guard import Surroundings
from fastmaml.episodes.batch import Batch, Episodes, without_inference_mode
from fastmaml.gradients import FirstOrder, GradientMethod
from fastmaml.gradients.base import Meta
from fastmaml.heads import Head
from fastmaml.maml.given_later import GivenLater
from fastmaml.maml.learner import Progress, adapt_in_place
from fastmaml.maml.output import MetaOutput, with_gradient
from fastmaml.maml.per_task import PerTask
from fastmaml.maml.planned import meta_of, plan_of, program_of
from fastmaml.maml.settings import (
    chosen_gradient,
    chosen_rule,
    rate_parameters,
    require_all_adapt,
    require_batch,
    require_choice,
    require_count,
    task_weights,
    weights_by_step,
)
from fastmaml.rules import Rule


class MAML(GivenLater):
    """A model and how it adapts: ``maml(episodes)`` gives the meta-loss with its meta-gradient.

    Model-agnostic meta-learning (Finn et al., 2017) for any `nn.Module`, for all tasks of a
    meta-batch at once. The meta-parameters are ``maml.parameters()``: the model's own and what the
    rule learns. The outer loop is yours: any optimizer, clipping, scheduler, GradScaler or wrapper.

    Args:
        model: called as ``model(x)`` for inputs that are a tensor, ``model(*x)`` for a tuple and
            ``model(**x)`` for a dict. It becomes ``maml.module`` and is not changed.
        lr: the inner learning rate, for plain gradient descent; a scalar `nn.Parameter` is
            learned. Give `rule` instead for another rule.
        first_order: short for ``gradient=FirstOrder()``.
        allow_unused, allow_nograd: as in learn2learn, for `adapt` only; ``maml(episodes)`` leaves
            unused and frozen parameters as they are by itself.
        steps: inner steps.
        loss: ``loss(output, targets)``, a scalar for one task, without trainable parameters.
        rule: how parameters move (`fastmaml.rules`).
        gradient: how the inner loop is differentiated (`fastmaml.gradients`); None chooses an
            exact method from a memory estimate.
        scope: which parameters adapt: "all", "head" (ANIL), "body" (BOIL), a name pattern or a
            predicate of (name, parameter). The others are still meta-learned unless frozen.
        head: how every task's own last layer begins (`fastmaml.heads`); it adapts, whatever the
            scope, and is not meta-learned. None: the model's own, which is.
        executor: how the meta-step runs. "captured": recorded at its first call, then replayed
            (what the model's Python code does besides computing happens once); "eager"; "compiled":
            the recording compiled by Inductor, slow to begin; None: captured where that is
            possible (docs/concepts/execution.md).
        backend: what runs the model's layers: "cpp", "cuda", "triton" (`fastmaml.ops`) or
            "reference" (PyTorch); None for FASTMAML_BACKEND (environment), else the fastest one.
        tasks_chunk: how many tasks run at a time; None chooses. The numbers do not depend on it.
        batch_norm: "batch": BatchNorm and InstanceNorm use the statistics of the batch at hand,
            in training and evaluation alike, and running statistics are neither read nor written,
            as in MAML. "module": they do as the module's own mode says; in training mode the
            model's running statistics are then the mean over tasks of what the query pass left.
        memory_budget: bytes that a meta-step may use, for the choices above; None is half of
            what is free. Also of the first call, which records; not of the trial before it.
        check_finite: raise `NonFiniteLoss` where a loss or the meta-gradient is NaN or infinite.
            It reads one number back from the device. Switch it off for float16 with a GradScaler,
            which expects to meet infinities; note that the meta-gradient is computed before the
            scaler's factor is known, so that float16 may underflow where bfloat16 does not.
        spot_checks: hold calls 2, 4, 8, ... of a recording against an eager run of one chunk.

    Raises:
        ValueError: an argument that cannot be obeyed, named in the message.

    Examples:
        >>> maml = MAML(model, lr=0.4, steps=1, loss=torch.nn.functional.cross_entropy)
        >>> out = maml(episodes)
        >>> out.loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor | None = None,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
        *,
        steps: int = 1,
        loss: Loss | None = None,
        rule: Rule | None = None,
        gradient: GradientMethod | None = None,
        scope: Scope = "all",
        head: Head | None = None,
        executor: Literal["eager", "captured", "compiled"] | None = None,
        backend: Literal["reference", "cpp", "cuda", "triton"] | None = None,
        tasks_chunk: int | None = None,
        batch_norm: Literal["batch", "module"] = "batch",
        memory_budget: int | None = None,
        check_finite: bool = True,
        spot_checks: bool = True,
    ) -> None:
        super().__init__()
        check_model(model)
        self.rule = chosen_rule(lr, rule)
        self.gradient = chosen_gradient(first_order, gradient)
        self.steps = require_count("steps", steps, least=0)
        require_count("tasks_chunk", 1 if tasks_chunk is None else tasks_chunk, least=1)
        self.tasks_chunk = tasks_chunk
        require_choice("executor", executor, (None, *EXECUTORS))
        require_choice("backend", backend, (None, *ops.BACKENDS))
        self.executor, self.backend = executor, backend
        self.spot_checks = spot_checks
        self._execute = make_executor(executor, spot_checks)
        self._execute_evaluation = make_executor(evaluating(executor), spot_checks)
        require_choice("batch_norm", batch_norm, ("batch", "module"))
        self.scope = scope
        self.head = find_head_layer(model, head)
        adapted = adapted_names(model, scope)
        if self.head is not None:
            adapted = list(dict.fromkeys([*adapted, *self.head.names]))
        self.batch_norm, self.loss = batch_norm, loss
        self.memory_budget, self.check_finite = memory_budget, check_finite
        self.allow_nograd = allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused
        self.module = model
        named = dict(model.named_parameters())
        rates = self.rule.rates({n: named[n].detach() for n in adapted}, steps)
        self.rates = rate_parameters(rates)
        self._rate_names, self._rate_steps = list(rates), steps
        self._plans: Plans[Plan] = Plans()
        self._stock = Stock()
        self._progress = Progress()
        self._turns = Turns()
        require_all_adapt(self.gradient, bool(rates or self._meta().shared))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``maml(episodes)``: the meta-step. Anything else is passed to the model.

        Args:
            episodes: the meta-batch; every tensor ``[tasks, examples, ...]``.
            gradient: another gradient method for this call.
            step_weights: weights of the query loss after inner steps 1, ..., steps for MAML++'s
                multi-step loss; by default only the last counts.

        Returns:
            `MetaOutput`. Where gradients are disabled (`torch.no_grad`), as `evaluate`.

        Raises:
            ValueError: shapes, devices, labels or a loss that do not fit, named in the message.
            NonFiniteLoss: a loss or the meta-gradient is not finite (with `check_finite`).

        Cost: ``steps`` inner steps for every task and their derivatives; see the gradient method.
        """
        if isinstance(args[0] if args else kwargs.get("episodes"), Episodes):
            return outside_compilers(self._meta_step)(*args, **kwargs)
        second_order = not isinstance(self.gradient, FirstOrder)
        return self._turns.call(called, self.module, second_order, self.module, *args, **kwargs)

    @in_turn
    def _meta_step(
        self,
        episodes: Episodes,
        gradient: GradientMethod | None = None,
        step_weights: Sequence[float] | Tensor | None = None,
    ) -> MetaOutput:
        if not torch.is_grad_enabled():
            return self.evaluate(episodes)
        held = self._stock.take(self.module)
        episodes, meta, seeds, program = self._prepare(
            episodes, self.steps, gradient, held, self.executor
        )
        checks.check_reach(program, episodes)
        by_step = weights_by_step(step_weights, self.steps)
        same = Surroundings(self.module, episodes, held, program)

        def run(cotangents: tuple[Tensor | None, Tensor | None] | None, outputs: Any) -> MetaResult:
            if cotangents is not None and not program.repeatable:
                raise RuntimeError(
                    "a loss of your own over out.losses or out.outputs runs the meta-step again, "
                    "but the model draws or counts what cannot be had again: use out.loss."
                )
            weights = task_weights(cotangents, held.dtype, held.device, len(seeds))
            with self._turns, same:
                return self._execute(program, meta, episodes, seeds, weights, by_step, outputs)

        out, result = with_gradient(run, flatten(meta)[0], episodes.query.targets)
        checks.check_reached(program)
        if self.check_finite:
            checks.check_finite(program, meta, episodes, seeds, result)
        if result.buffers:
            keep_buffers(self.module, result.buffers)
        return out

    def evaluate(self, episodes: Episodes, steps: int | None = None) -> MetaOutput:
        """Adapt and evaluate without building graphs; parameters and buffers stay as they are.

        Dropout follows the model's mode: call ``maml.eval()`` first. Seeds are drawn from torch's
        global CPU generator, as in training.

        Args:
            episodes: the meta-batch.
            steps: inner steps, 0 for the model as it is; None for those of training.
        """
        steps = self.steps if steps is None else require_count("steps", steps, least=0)
        return self._evaluate(episodes, steps, [steps])[0]

    def evaluate_each_step(self, episodes: Episodes, steps: int | None = None) -> list[MetaOutput]:
        """As `evaluate`, after 0, 1, ..., steps inner steps: a learning curve, one result each."""
        steps = self.steps if steps is None else require_count("steps", steps, least=0)
        return self._evaluate(episodes, steps, range(steps + 1))

    @in_turn
    def _evaluate(self, episodes: Episodes, steps: int, at: Sequence[int]) -> list[MetaOutput]:
        with torch.inference_mode(False):  # the inner gradient needs autograd all the same
            held, executor = self._stock.take(self.module), evaluating(self.executor)
            # No meta-gradient is wanted here, so nothing need have a second derivative.
            episodes, meta, seeds, program = self._prepare(
                episodes, steps, FirstOrder(), held, executor
            )
            with Surroundings(self.module, episodes, held):
                results = evaluate(self._execute_evaluation, program, meta, episodes, seeds, at)
        return [MetaOutput(x.mean(), x, y, episodes.query.targets) for x, y in results]

    @in_turn
    def adapt_to(self, support: Batch, steps: int | None = None) -> nn.Module:
        """A plain copy of the model, adapted to one task.

        Args:
            support: one task's examples, ``[examples, ...]``.
            steps: inner steps; None for those of training.

        Returns:
            A module of the model's own class and mode, detached from the meta-parameters. With
            ``batch_norm="batch"`` its normalisation layers go on using the batch at hand in both
            modes (they hold no running statistics), as they did while it was meta-trained; to load
            its ``state_dict()`` into a fresh model, see `fastmaml.forget_running_statistics`.
        """
        require_batch(support)
        task = support.map(lambda x: x.unsqueeze(0))
        steps = self.steps if steps is None else require_count("steps", steps, least=0)
        episodes = Episodes(task, task)
        with torch.inference_mode(False):  # as in `_evaluate`
            episodes, meta, seeds, program = self._prepare(episodes, steps, FirstOrder())
            adapted = adapt(program, meta, episodes, seeds)
        return adapted_copy(self.module, adapted, own_statistics=self.batch_norm == "batch")

    def per_task(self, function: Callable[..., Any]) -> PerTask:
        """A decorator: ``function(learner, *task)`` of one task, for all at once (`PerTask`)."""
        return PerTask(self, function)

    @in_turn
    def explain(self, episodes: Episodes, steps: int | None = None) -> Plan:
        """Print and return what would run for such episodes, what was refused, and why."""
        steps = self.steps if steps is None else require_count("steps", steps, least=0)
        held = self._stock.take(self.module)
        meta = self._meta(held)
        seeds = torch.arange(episodes.tasks, device=held.device)  # draws nothing
        program = program_of(self, held, steps, self.executor)
        plan = plan_of(self, program, meta, episodes, seeds, self.gradient, held, self.executor)
        line = f"executor: {self.executor}, as asked"
        if isinstance(self._execute, Captured):
            weights = task_weights(None, held.dtype, held.device, len(seeds))
            with Surroundings(self.module, episodes, held):
                line = self._execute.explain(
                    plan.applied(program), meta, episodes, seeds, weights,
                    weights_by_step(None, steps), None,
                )  # fmt: skip
        print(plan, line, sep="\n")
        return plan

    @in_turn
    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> MAML:
        """A learner whose parameters are differentiable copies of this one's (learn2learn's verb).

        Call it on inputs, adapt it with `adapt`, and the query loss's ``backward()`` reaches the
        original. Buffers are shared with the original. A clone of a clone stays connected. For
        speed use ``maml(episodes)``, which runs all tasks at once.
        """
        if self.head is not None:
            raise ValueError(
                f"clone() cannot make a task's own head ({self.head.head}), as it is not told the "
                "support set: use maml(episodes) or adapt_to(support), or leave head= out."
            )
        learner = copy.copy(self)
        learner.__dict__ = {**self.__dict__, "_modules": dict(self._modules)}
        learner.module = clone_module(self.module)
        learner._execute = make_executor(self.executor, self.spot_checks)
        learner._execute_evaluation = make_executor(evaluating(self.executor), self.spot_checks)
        learner._plans, learner._stock = Plans(), Stock()  # `_progress` goes on from here
        if first_order is not None:
            learner.gradient = FirstOrder() if first_order else None
        own = {"allow_nograd": allow_nograd, "allow_unused": allow_unused}
        learner.__dict__.update({name: x for name, x in own.items() if x is not None})
        return learner

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One inner step on `loss`, in place (learn2learn's verb); only on a `clone`.

        Args:
            loss: scalar, computed with this clone.
            first_order: take the inner gradient as a constant.
            allow_unused: leave parameters that the loss does not reach as they are.
            allow_nograd: leave frozen parameters as they are.

        Raises:
            RuntimeError: the loss cannot be differentiated with respect to every parameter; the
                message says which argument allows it. The loss's graph is left intact.
        """
        if first_order is None:
            first_order = isinstance(self.gradient, FirstOrder)
        meta = self._meta()
        self._progress = adapt_in_place(
            self.module,
            list(meta.adapted),
            self.rule,
            meta.rates,
            loss,
            self._progress,
            second_order=not first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )

    def __getattr__(self, name: str) -> Any:
        """The model's attributes are this object's too, as in learn2learn."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module" or "module" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.module, name)

    def _meta(self, held: Inventory | None = None) -> Meta:
        """The meta-parameters as they are now; frozen ones are not among them."""
        return meta_of(self, held or self._stock.take(self.module))

    def _prepare(
        self,
        episodes: Episodes,
        steps: int,
        gradient: GradientMethod | None = None,
        held: Inventory | None = None,
        executor: str | None = "eager",
    ) -> tuple[Episodes, Meta, Tensor, Program]:
        """Check the episodes, decide how `executor` runs them, and draw their seeds."""
        if not isinstance(episodes, Episodes):
            raise ValueError(f"episodes is a {type(episodes).__name__}; give a fastmaml.Episodes.")
        held = held or self._stock.take(self.module)
        checks.check_device(held.device, episodes)
        episodes = without_inference_mode(episodes)
        meta, seeds = self._meta(held), task_seeds(episodes.tasks, held.device)
        program = program_of(self, held, steps, executor)
        plan = plan_of(
            self, program, meta, episodes, seeds, gradient or self.gradient, held, executor
        )
        if seeds.device.type == "cpu":  # elsewhere reading labels back would wait for the device
            checks.check_labels(self.loss, plan.classes, episodes)
        return episodes, meta, seeds, plan.applied(program)
