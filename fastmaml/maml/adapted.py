"""`Adapted`: the parameters of all tasks after inner steps, as a value that acts and goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fastmaml.engine.derivatives.copying import adapted_copy
from fastmaml.engine.step.padding_checks import by_batch, check_padding
from fastmaml.engine.step.task_learner import TaskLearner
from fastmaml.engine.step.task_state import go_on, queried, state_of
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.maml.per_task import PerTask
from fastmaml.maml.predictions import Predictions, taken_apart, usable
from fastmaml.maml.settings import require_batch, require_count
from fastmaml.models.per_step import row_of_pass, set_inner_step
from fastmaml.rules.base import Tensors

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML

InnerLoss = Callable[[TaskLearner, Any], Tensor]
"""``loss(learner, support)`` of one task, a scalar."""


@final
class Adapting:
    """Inner steps on one kind of loss, recorded; makes `Adapted`.

    Args:
        maml: whose model and rule.
        given: the loss of one task, computed with its learner; None for the `MAML`'s.
    """

    def __init__(self, maml: MAML, given: InnerLoss | None) -> None:
        self.maml, self.given = maml, given
        loss = _own_loss(maml) if given is None else given

        def further(learner: TaskLearner, state: Any, before: int, steps: int, support: Any) -> Any:
            if state is not None:
                go_on(learner, state, before)
            found = None
            for _ in range(steps):
                found = loss(learner, support)
                learner.adapt(found, first_order=True)
            return found, state_of(learner)

        def predict(learner: TaskLearner, state: Any, before: int, inputs: Any) -> Any:
            go_on(learner, state, before)
            given = inputs[0] if len(inputs) == 1 else inputs
            outputs = taken_apart(called(queried(learner), given))
            return next(learner.parameters()).sum() * 0, outputs  # the loss is nobody's

        self._further = PerTask(maml, further, learns=False, given=loss)
        self._predict = PerTask(maml, predict, learns=False)

    def __call__(self, support: Any, steps: int = 1, state: Any = None, before: int = 0) -> Adapted:
        """Every task after `steps` more inner steps.

        Args:
            support: a tree of tensors ``[tasks, ...]``.
            steps: how many, at least one.
            state: where the tasks stand; None for θ.
            before: how many steps led there.
        """
        with torch.inference_mode(False), torch.no_grad():  # the inner gradient needs autograd
            out = self._further(state, before, steps, tree_map_only(Tensor, usable, support))
        return Adapted(self, out.outputs, before + steps, out.losses)


@final
class LastAdapting:
    """The inner steps that were asked for last; a copy (`copy.deepcopy`, pickling) begins empty."""

    def __init__(self) -> None:
        self._known: Adapting | None = None

    def __reduce__(self) -> Any:
        return LastAdapting, ()

    def of(self, maml: MAML, given: InnerLoss | None) -> Adapting:
        """Those on such a loss."""
        if self._known is None or self._known.given != given:
            self._known = Adapting(maml, given)
        return self._known


def adapted(maml: MAML, support: Any, steps: int, loss: InnerLoss | None) -> Adapted:
    """See `MAML.adapted`."""
    require_count("steps", steps, least=1)
    if loss is None:
        require_batch(support)
        if maml.loss is None:
            raise ValueError("this MAML has no loss: give adapted(support, loss=...).")
        support = _checked(maml, support)
    return maml._adapting.of(maml, loss)(support, steps)


def _checked(maml: MAML, support: Batch) -> Any:
    """Inputs and targets, of which those that only fill up have no part in others' results."""
    normalises = by_batch(maml.module, maml.batch_norm == "batch")
    if normalises is not None:
        check_padding(normalises, Episodes(support, support))
    return support.inputs, support.targets


def _own_loss(maml: MAML) -> InnerLoss:
    """The `MAML`'s loss of one task's (inputs, targets)."""

    def loss(learner: TaskLearner, support: Any) -> Tensor:
        inputs, targets = support
        found: Tensor = maml.loss(called(learner, inputs), targets)  # type: ignore[misc]  # it is
        return found

    return loss


def called(learner: TaskLearner, inputs: Any) -> Any:
    """The model's output for inputs as a `Batch` has them."""
    if isinstance(inputs, dict):
        return learner(**inputs)
    return learner(*inputs) if isinstance(inputs, tuple | list) else learner(inputs)


@final
class Adapted:
    """The parameters of all tasks of a meta-batch after some inner steps: a value.

    Callable on inputs ``[tasks, ...]``, without graphs, and the start of further steps on other
    data. It holds one copy of what adapts for every task (and of the rule's state). Parameters that
    do not adapt are the model's own, as they are when it is called. Not for training: the
    meta-gradient is that of ``maml(episodes)`` or of a per-task function, which run the inner loop
    as a whole. `MAML.adapted` makes it.

    Args:
        adapting: the inner steps on such a loss.
        state: the tasks' parameters, and what the rule carries.
        steps: how many inner steps led here.
        losses: before the last of them.

    Attributes:
        steps: how many inner steps led here.
        losses: ``[tasks]``: the inner losses before the last step.
    """

    def __init__(self, adapting: Adapting, state: Any, steps: int, losses: Tensor) -> None:
        self._adapting, self._state = adapting, state
        self.steps, self.losses = steps, losses
        self._predictions = Predictions(adapting._predict, state, steps)

    @property
    def parameters(self) -> Tensors:
        """What adapts, by name, each ``[tasks, *shape]``: its own tensors, in another dict."""
        return dict(self._state[0])

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(self.losses)

    def __call__(self, *inputs: Any) -> Any:
        """What each task's adapted model gives for its inputs: a tree of ``[tasks, ...]``.

        Args:
            inputs: as the model takes them, or as a `Batch` holds them (a tuple for several, a dict
                for names); every tensor ``[tasks, ...]``.

        The first call for inputs of a kind runs the model, later ones replay what it did then for
        as long as nothing of it changes.
        """
        return self._predictions(inputs)

    def step(self, support: Any, steps: int = 1) -> Adapted:
        """The tasks after further inner steps, on data that may be others; this value stays.

        Args:
            support: as it was given before, of as many tasks.
            steps: how many.
        """
        require_count("steps", steps, least=1)
        if self._adapting.given is None:
            require_batch(support)
            support = _checked(self._adapting.maml, support)
        return self._adapting(support, steps, self._state, self.steps)

    def module(self, task: int) -> nn.Module:
        """A plain copy of the model with one task's parameters.

        Raises:
            IndexError: there is no such task.
        """
        if not -self.tasks <= task < self.tasks:
            raise IndexError(f"task {task} of {self.tasks}: count from 0.")
        maml = self._adapting.maml
        own = {n: p[task].unsqueeze(0) for n, p in self.parameters.items()}
        found = adapted_copy(maml.module, own, own_statistics=maml.batch_norm == "batch")
        set_inner_step(found, row_of_pass(self.steps, query=True))
        return found
