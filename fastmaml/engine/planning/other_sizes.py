"""Plans for data of other sizes: what the model is was learned before, and only bytes scale.

A model whose shots, lengths or image counts vary has a plan for each; all but two are had by
running its code once on one task, to see that it does the same there (`call_log`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base.attempt import attempted
from fastmaml.engine.base.sizes import Sizes, general, sizes_of
from fastmaml.engine.guards.sight import Sight, root
from fastmaml.engine.memory.available import free_bytes
from fastmaml.engine.memory.budget import mib
from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.engine.planning.call_log import Log, Logs, logged
from fastmaml.engine.planning.plan import Asked, Plan
from fastmaml.engine.planning.planner import about_tasks, chunk_size
from fastmaml.engine.step.data import TaskData
from fastmaml.engine.step.inner_loop import support_sets
from fastmaml.engine.step.label_checks import class_counts
from fastmaml.engine.step.program import Call

MAX_KINDS = 16
"""Kinds of calls of which something is kept; the one that was not used for longest goes first."""

MUCH_LARGER = 2.0
"""Data up to so many times as large runs in chunks of as many tasks, so that recordings can have
something in common."""


@dataclass
class _Known:
    """Of calls that differ in sizes alone.

    Attributes:
        plan: for the sizes at hand.
        sizes: for which it was made.
        logs: what the code calls; None until there are two sizes, or where that tells too little.
    """

    plan: Plan
    sizes: Sizes
    logs: Logs | None = None


@final
class OtherSizes:
    """The plans of a `MAML` from which those for other sizes follow.

    A copy (`copy.deepcopy`, pickling) begins empty.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Any, _Known] = OrderedDict()

    def __reduce__(self) -> Any:
        return OtherSizes, ()

    def keep(self, key: Any, plan: Plan, call: Call) -> Plan:
        """A plan that was made from the beginning; returned as it is to be used.

        Args:
            key: alike for calls that differ in sizes alone.
            plan: the new one.
            call: for which it was made.
        """
        sizes, before = _sizes(call.data), self._known.pop(key, None)
        found = _Known(plan, sizes)
        tells = _tells_all(plan) and support_sets(call.data) == 1  # which is the one seen
        if before is not None and before.sizes != sizes and tells:
            _, log = attempted(lambda: _logged(plan, call))
            if log is not None:
                found = _Known(replace(plan, sizes="vary"), sizes, Logs(sizes, log))
        self._known[key] = found
        if len(self._known) > MAX_KINDS:
            self._known.popitem(last=False)
        return found.plan

    def find(self, key: Any, call: Call, guarded: Any, asked: Asked) -> Plan | None:
        """A plan for such a call, if it follows from what is known of others.

        Args:
            key: as for `keep`.
            call: its first task is run through the model.
            guarded: see `Guards.hold`.
            asked: as when the others were planned.
        """
        known = self._known.get(key)
        if known is None or known.logs is None:
            return None
        plan, sizes = known.plan, _sizes(call.data)
        if plan.restless != plan.depends.restless or not plan.depends.hold(guarded):
            return None
        scaled = _scaled(known, sizes, call, asked)
        if scaled is None:
            return None
        _, log = attempted(lambda: _logged(plan, call))
        if log is None or not known.logs.alike(log):
            return None
        self._known.move_to_end(key)
        foretold = known.logs.foretold(sizes, log)
        if not foretold:
            known.logs.add(sizes, log)
        return replace(
            scaled,
            classes=class_counts(call.program.forward.losses, log.outputs, call.data),
            sizes="known" if foretold else "vary",
        )


def _sizes(data: TaskData) -> Sizes:
    return sizes_of(tree_leaves(data.tree()))


def general_signature(data: TaskData) -> tuple[Any, ...]:
    """What is alike for data of other sizes."""
    leaves = tree_leaves(data.tree())
    return tuple([general(x) if isinstance(x, Tensor) else x for x in leaves])


def _tells_all(plan: Plan) -> bool:
    """Whether the calls of a forward pass tell what a meta-step does."""
    own = root(type(plan.gradient).__module__) == "fastmaml" and plan.gradient.runs_loop
    steady = plan.repeatable and not plan.uncertain and not plan.restless
    return own and steady and not plan.depends.refusal and not plan.depends.scripted


class _OtherCodeError(Exception):
    """Code runs that did not run at other sizes."""


def _logged(plan: Plan, call: Call) -> Log:
    """What the first task's passes call, where the plan knows the code that runs."""
    with torch.random.fork_rng(devices=[]), Sight() as sight:
        log = logged(call._replace(program=plan.applied(call.program)))
    if not plan.depends.knows(sight):
        raise _OtherCodeError
    return log


def _scaled(known: _Known, sizes: Sizes, call: Call, asked: Asked) -> Plan | None:
    """The plan with bytes for these sizes; None where they might be too many to guess.

    What smaller data needs is less; larger data is taken to need the square of the largest ratio,
    as attention does.
    """
    plan, tasks = known.plan, call.data.tasks
    ratio = max([new / old for new, old in zip(sizes, known.sizes, strict=True) if old], default=1)
    growth = max(1.0, ratio) ** 2
    budget, chunk = plan.bytes_budget, plan.chunk
    if growth > 1:
        budget = free_bytes(call.seeds.device) // 2 if asked.budget is None else asked.budget
        if plan.bytes_first * growth > budget:
            return None
    if ratio > MUCH_LARGER and plan.batched:
        kept = round((plan.bytes_step + plan.bytes_query) * ratio)
        chunk = min(chunk, chunk_size(tasks, asked, kept, call.seeds.device, budget))
    law = plan.law
    bytes_estimate = round(plan.bytes_estimate * growth)
    return replace(
        plan,
        chunk=chunk,
        bytes_step=round(plan.bytes_step * growth),
        bytes_query=round(plan.bytes_query * growth),
        bytes_estimate=bytes_estimate,
        bytes_first=round(plan.bytes_first * growth),
        bytes_budget=budget,
        law=MemoryLaw(law.shared * growth, law.fixed * growth, law.per_step * growth),
        reasons=(
            about_tasks(chunk, tasks, asked, plan.refusal, asked.lanes),
            f"memory: at most about {mib(bytes_estimate)}, judging by data of other sizes",
            *plan.reasons[2:],
        ),
    )
