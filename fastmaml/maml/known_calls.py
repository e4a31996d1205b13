"""Meta-steps that are like one before: what was found out about that one holds for them, too."""

from __future__ import annotations

from collections import OrderedDict
from operator import is_
from typing import TYPE_CHECKING, Any, final

from fastmaml.engine.guards.plans import environment
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.model.scope import AllBut
from fastmaml.engine.recording.executors import ExecutorName, chosen_backend, lanes
from fastmaml.engine.step.data import TaskData, signature
from fastmaml.engine.step.program import Known, Program
from fastmaml.maml.plan import meta_of, program_of
from fastmaml.maml.settings import rate_key, task_weights

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML

MAX_KNOWN = 32
"""Kinds of meta-steps of which something is known; the least recently used one goes first."""


def _made_from(
    maml: MAML, held: Inventory, executor: ExecutorName | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What `meta_of`, `program_of` and the key of a plan look at, besides data and modes.

    Returns:
        Objects that have to be these very ones, and others that have to be equal.
    """
    given, device, rates = maml.settings, held.device, maml.rates
    model = held.parameters, held.buffers, maml.module, maml._head_layer, maml._anew
    backend = chosen_backend(given.backend, executor, device)
    return (
        (
            *model,
            given,
            maml.loss,
            maml.query_loss,
            *(rates[rate_key(n)] for n in maml._rate_names),
        ),
        (
            [(p.requires_grad, p.dtype, p.shape) for p in held.parameters.values()],
            *(device, backend, lanes(executor, device), environment(device.type)),
        ),
    )


@final
class KnownCalls:
    """What was found out about each kind of meta-step, as long as it holds.

    A copy (`copy.deepcopy`, pickling) begins empty.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, tuple[tuple[Any, ...], Known]] = OrderedDict()
        self._same: tuple[Any, ...] = ()

    def __reduce__(self) -> Any:
        return KnownCalls, ()

    def of(
        self,
        maml: MAML,
        held: Inventory,
        data: TaskData,
        steps: int,
        executor: ExecutorName | None,
    ) -> Known:
        """What is known of such a meta-step; at the first one, what is before anything is planned.

        Args:
            maml: whose settings count.
            held: the model's tensors and modes now.
            data: the meta-batch.
            steps: inner steps.
            executor: will run it.
        """
        same, equal = _made_from(maml, held, executor)
        if len(same) != len(self._same) or not all(map(is_, same, self._same)):
            self._kept.clear()  # or it would keep what is the model's no more
            self._same = same
        key = signature(data), held.training, steps, executor
        found = self._kept.get(key)
        if found is not None and found[0] == equal:
            self._kept.move_to_end(key)
            return found[1]
        program = program_of(maml, held, steps, executor)
        weights = task_weights(None, held.dtype, held.device, data.tasks)
        known = Known(program, meta_of(maml, held), weights)
        if _stays(maml, program):
            self._kept[key] = equal, known
            if len(self._kept) > MAX_KNOWN:
                self._kept.popitem(last=False)
        return known


def _stays(maml: MAML, program: Program) -> bool:
    """Whether nothing else decides: no function of the user's, no copies, no other library."""
    forward, scope = program.forward, maml.settings.scope
    asks = callable(scope) and not isinstance(scope, AllBut)
    return not (asks or forward.keeps_buffers or forward.host is not None)
