"""`MAML`: any module as a meta-learner."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmaml.engine.base.dynamo import outside_compilers
from fastmaml.engine.base.turns import Turns, in_turn
from fastmaml.engine.derivatives.copying import adapted_copy
from fastmaml.engine.guards.plans import Plans
from fastmaml.engine.model.inventory import Stock
from fastmaml.engine.model.refused_models import check_model
from fastmaml.engine.model.scope import Scope, adapted_names, begun_anew
from fastmaml.engine.planning.other_sizes import OtherSizes
from fastmaml.engine.planning.plan import Plan
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.executors import ExecutorName, evaluating, make_executor
from fastmaml.engine.step.adaptation import EVALUATION, adaptation
from fastmaml.engine.step.forward import Loss
from fastmaml.engine.step.head_layer import find_head_layer
from fastmaml.engine.step.meta_step import adapt
from fastmaml.engine.step.rerun_guard import RerunGuard
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.gradients import GradientMethod
from fastmaml.heads import Head
from fastmaml.maml.adapted import Adapted, InnerLoss, LastAdapting, adapted
from fastmaml.maml.admit import admit
from fastmaml.maml.clones import Clones, Progress
from fastmaml.maml.directional import Directional, Directions
from fastmaml.maml.execute import check, execute
from fastmaml.maml.known_calls import KnownCalls
from fastmaml.maml.output import MetaOutput
from fastmaml.maml.per_task import PerTask
from fastmaml.maml.plan import meta_of, plan, plan_of
from fastmaml.maml.settings import (
    Settings,
    chosen_gradient,
    chosen_rule,
    rate_parameters,
    require_all_adapt,
    require_batch,
    require_count,
    require_fit,
)
from fastmaml.models.per_step import row_of_pass, set_inner_step
from fastmaml.ops._load import Backend
from fastmaml.rules import Rule


class MAML(Clones):
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
        query_loss: the same of the query set, where it is another one: then `loss` is what inner
            steps descend, and this what is meta-learned and reported (`MetaOutput.losses`); None
            for `loss`. Reptile reports it, but learns from the support sets alone.
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
        query_loss: Loss | None = None,
        rule: Rule | None = None,
        gradient: GradientMethod | None = None,
        scope: Scope = "all",
        head: Head | None = None,
        executor: ExecutorName | None = None,
        backend: Backend | None = None,
        tasks_chunk: int | None = None,
        batch_norm: Literal["batch", "module"] = "batch",
        memory_budget: int | None = None,
        check_finite: bool = True,
        spot_checks: bool = True,
    ) -> None:
        super().__init__()
        check_model(model)
        self._begin(
            model,
            Settings(
                rule=chosen_rule(lr, rule),
                gradient=chosen_gradient(first_order, gradient),
                steps=steps,
                loss=loss,
                query_loss=query_loss,
                scope=scope,
                head=head,
                executor=executor,
                backend=backend,
                tasks_chunk=tasks_chunk,
                batch_norm=batch_norm,
                memory_budget=memory_budget,
                check_finite=check_finite,
                spot_checks=spot_checks,
                allow_nograd=allow_nograd,
                allow_unused=allow_nograd if allow_unused is None else allow_unused,
            ),
        )

    @classmethod
    def of(cls, model: nn.Module, settings: Settings) -> MAML:
        """The `MAML` of a model with these settings, as ``replace(maml.settings, steps=5)`` gives.

        Learned rates begin as the rule says.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._begin(model, settings)
        return made

    def _begin(self, model: nn.Module, settings: Settings) -> None:
        """Take a model and settings, and find what in the model they are about."""
        self.settings = settings
        self._register_losses()
        self._head_layer = find_head_layer(model, settings.head)
        self._anew = begun_anew(model)
        adapted = adapted_names(model, settings.scope)
        if self._head_layer is not None:
            adapted = list(dict.fromkeys([*adapted, *self._head_layer.names]))
        self.module = model
        named = dict(model.named_parameters())
        rates = settings.rule.rates({n: named[n].detach() for n in adapted}, settings.steps)
        self.rates = rate_parameters(rates)
        self._rate_names, self._rate_steps = list(rates), settings.steps
        self._progress = Progress()
        self._turns = Turns()
        self._forget()
        shared = meta_of(self, self._stock.take(model)).shared
        require_all_adapt(self.gradient, bool(rates or shared))
        require_fit(self.gradient, settings.rule, bool(rates))

    def _forget(self) -> None:
        """Begin without plans and recordings."""
        self._plans: Plans[Plan] = Plans()
        self._other_sizes = OtherSizes()
        self._known = KnownCalls()
        self._adapting = LastAdapting()
        self._directions = Directions()
        self._stock = Stock()
        self._choose_executors()

    def _choose_executors(self) -> None:
        settings = self.settings
        self._execute = make_executor(settings.executor, settings.spot_checks)
        self._execute_evaluation = make_executor(
            evaluating(settings.executor), settings.spot_checks
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``maml(episodes)``: the meta-step. Anything else is passed to the model.

        ``maml(supports, query)`` is that of a support set for each inner step, in a list of
        `Batch`: `Episodes.of_steps`.

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
        if any(map(_holds_batches, (*args, *kwargs.values()))):
            return outside_compilers(self._stepwise)(*args, **kwargs)
        return self._turns.call(self._called, self.module, *args, **kwargs)

    def _stepwise(self, supports: Sequence[Batch], query: Batch, **settings: Any) -> MetaOutput:
        return self._meta_step(Episodes.of_steps(supports, query), **settings)

    @in_turn
    def _meta_step(
        self,
        episodes: Episodes,
        gradient: GradientMethod | None = None,
        step_weights: Sequence[float] | Tensor | None = None,
    ) -> MetaOutput:
        if episodes.later and len(episodes.later) + 1 != self.steps:
            raise ValueError(
                f"{len(episodes.later) + 1} support sets for {self.steps} inner steps: give one "
                "for each, or a single one for all."
            )
        if not torch.is_grad_enabled():
            return self.evaluate(episodes)
        held, method = self._stock.take(self.module), gradient or self.gradient
        call = admit(self, held, episodes, self.steps, self.executor, step_weights)
        call = plan(self, held, call, method, self.executor, learns=True)
        out, result = execute(self, held, call, self._execute, episodes.query.targets)
        check(self, call, result)
        return out

    def evaluate(self, episodes: Episodes, steps: int | None = None) -> MetaOutput:
        """Adapt and evaluate without building graphs; parameters and buffers stay as they are.

        Dropout follows the model's mode: call ``maml.eval()`` first. Seeds are drawn from torch's
        global CPU generator, as in training.

        Args:
            episodes: the meta-batch.
            steps: inner steps, 0 for the model as it is; None for those of training.
        """
        steps = self._count(steps)
        return self._evaluate(episodes, steps, [steps])[0]

    def evaluate_each_step(self, episodes: Episodes, steps: int | None = None) -> list[MetaOutput]:
        """As `evaluate`, after 0, 1, ..., steps inner steps: a learning curve, one result each."""
        steps = self._count(steps)
        return self._evaluate(episodes, steps, range(steps + 1))

    @in_turn
    def _evaluate(self, episodes: Episodes, steps: int, at: Sequence[int]) -> list[MetaOutput]:
        with torch.inference_mode(False):  # the inner gradient needs autograd all the same
            held, executor = self._stock.take(self.module), evaluating(self.executor)
            call = admit(self, held, episodes, steps, executor)
            call = plan(self, held, call, EVALUATION, executor)
            with RerunGuard(self.module, call.data, held):
                results = self._execute_evaluation(adaptation(call, at)).outputs
        return [MetaOutput(x.mean(), x, y, episodes.query.targets) for x, y in results]

    def save_pretrained(self, folder: str | os.PathLike[str], tokenizer: Any = None) -> str:
        """Write a meta-learned model of transformers: `integrations.transformers.save_pretrained`.

        Learned inner rates are no part of it.
        """
        from fastmaml.integrations.transformers.saving import save_pretrained

        return save_pretrained(self.module, folder, tokenizer)

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
        steps = self._count(steps)
        with torch.inference_mode(False):  # as in `_evaluate`
            held = self._stock.take(self.module)
            call = admit(self, held, Episodes(task, task), steps, "eager")
            adapted = adapt(plan(self, held, call, EVALUATION, "eager"))
        found = adapted_copy(self.module, adapted, own_statistics=self.batch_norm == "batch")
        set_inner_step(found, row_of_pass(steps, query=True))
        return found

    def adapted(
        self, support: Any, steps: int | None = None, loss: InnerLoss | None = None
    ) -> Adapted:
        """All tasks' adapted models as one value, which acts and from which further steps start.

        Args:
            support: a `Batch`, every tensor ``[tasks, examples, ...]``; with `loss` any tree of
                tensors ``[tasks, ...]``.
            steps: inner steps; None for those of training.
            loss: ``loss(learner, support)`` of one task; None for the `MAML`'s own loss of what
                the model gives for the inputs, and the targets. Give the same function each time:
                another one is looked at and recorded anew.

        Returns:
            An `Adapted`, detached from the meta-parameters.

        Raises:
            ValueError: `steps` is not positive; a `MAML` with a head of every task's own.

        Examples:
            >>> adapted = maml.adapted(support)
            >>> outputs = adapted(inputs)  # [tasks, ...]
            >>> further = adapted.step(more)
        """
        return adapted(self, support, self._count(steps), loss)

    def jvp(
        self, episodes: Episodes, tangents: Mapping[str, Tensor], steps: int | None = None
    ) -> Directional:
        """Query losses and outputs, and their derivatives along a direction of the parameters.

        The product J·v with the derivatives of what adaptation leads to by what it begins with:
        through the inner loop once, for products of a Fisher or Gauss-Newton matrix (Jᵀ·u is a
        meta-gradient of ``(out.outputs * u).sum()``). No graphs.

        Args:
            episodes: the meta-batch.
            tangents: v, one tensor like each trainable parameter, by its name in the model.
            steps: inner steps; None for those of training.

        Raises:
            ValueError: tangents that do not fit; parameters that do not adapt, a rule that is not
                SGD with a fixed rate (or `Scheduled` of it), a head of every task's own.

        Cost: a gradient and a product with the Hessian for each inner step, and two gradients of
        the query pass.
        """
        return self._directions(self, episodes, tangents, self._count(steps))

    def per_task(self, function: Callable[..., Any]) -> PerTask:
        """A decorator: ``function(learner, *task)`` of one task, for all at once (`PerTask`)."""
        return PerTask(self, function)

    @in_turn
    def explain(self, episodes: Episodes, steps: int | None = None) -> Plan:
        """What would run for such episodes, what was refused, and why: print it.

        Returns:
            The plan, whose text has a line for each choice, the executor's last.
        """
        held, line = self._stock.take(self.module), f"executor: {self.executor}, as asked"
        with torch.inference_mode(False):  # it tries derivatives
            seeds = torch.arange(episodes.tasks, device=held.device)  # draws nothing
            call = admit(self, held, episodes, self._count(steps), self.executor, seeds=seeds)
            found = plan_of(self, self._plans, held, call, self.gradient, self.executor)
            if isinstance(self._execute, Captured):
                with RerunGuard(self.module, call.data, held):
                    line = self._execute.explain(call._replace(program=found.applied(call.program)))
        return replace(found, reasons=(*found.reasons, line))

    def _count(self, steps: int | None) -> int:
        """The number of inner steps; None for those of training."""
        return self.steps if steps is None else require_count("steps", steps, least=0)


def _holds_batches(x: Any) -> bool:
    """Whether it is meant for a meta-step: models take none."""
    first = x[0] if isinstance(x, list | tuple) and x else x
    return isinstance(first, Batch | Episodes)
