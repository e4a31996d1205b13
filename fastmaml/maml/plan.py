"""What a `MAML`'s settings, and its model as it is now, make of a meta-step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.plans import Plans, environment, key_of
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.model.scope import adapted_names, begun_anew, check_anew, select
from fastmaml.engine.planning.other_sizes import general_signature
from fastmaml.engine.planning.plan import Asked, Plan
from fastmaml.engine.planning.planner import make_plan
from fastmaml.engine.recording.executors import ExecutorName, chosen_backend, lanes
from fastmaml.engine.step.checks import check_reach, explain_failure
from fastmaml.engine.step.data import signature
from fastmaml.engine.step.forward import TaskForward
from fastmaml.engine.step.head_layer import find_head_layer
from fastmaml.engine.step.label_checks import check_labels
from fastmaml.engine.step.padding_checks import by_batch, check_padding
from fastmaml.engine.step.program import Call, Program
from fastmaml.gradients import GradientMethod, Unrolled
from fastmaml.gradients.base import Meta
from fastmaml.integrations.hosts import find_hosts
from fastmaml.maml.given_later import GivenLater
from fastmaml.maml.settings import rate_key
from fastmaml.rules.base import Tensors

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML


def meta_of(maml: GivenLater, held: Inventory) -> Meta:
    """The meta-parameters as they are now; frozen ones are not among them."""
    given = maml.settings  # its properties would look there one by one
    named = held.parameters
    check_anew(named, maml._anew)
    chosen = select(named, given.scope, maml._anew) or adapted_names(maml.module, given.scope)
    own = () if maml._head_layer is None else maml._head_layer.names
    adapted = {n: named[n] for n in chosen if n not in own}
    shared = {
        n: p for n, p in named.items() if p.requires_grad and n not in adapted and n not in own
    }
    rates = {n: maml.rates[rate_key(n)] for n in maml._rate_names}
    return Meta(adapted, shared, rates)  # type: ignore[arg-type]  # Parameters are tensors


def program_of(
    maml: MAML, held: Inventory, steps: int, executor: ExecutorName | None, needs_loss: bool = True
) -> Program:
    """The meta-step before anything is planned; `executor` is the one that will run it."""
    given = maml.settings
    if maml.loss is None and needs_loss:
        raise ValueError(
            "this MAML has no loss: give loss= when you make it, for example "
            "MAML(model, lr=0.4, loss=torch.nn.functional.cross_entropy)."
        )
    heads = () if maml._head_layer is None else maml._head_layer.names
    named = held.parameters.items()
    anew = {*select(held.parameters, given.scope, maml._anew)} if maml._anew else ()
    frozen: Tensors = {
        n: p for n, p in named if (not p.requires_grad and n not in anew) or n in heads
    }
    host = find_hosts(maml.module)
    frozen = frozen if host is None else host.constants(frozen)
    own = given.batch_norm == "batch"
    keeps = not own and any(held.training)
    buffers = {n: b.clone() if keeps else b for n, b in held.buffers.items()}
    backend = chosen_backend(given.backend, executor, held.device)
    forward = TaskForward(
        maml.module,
        maml.loss or _no_loss,
        frozen,
        buffers,
        own,
        keeps,
        batched=False,
        backend=backend,
        host=host,
        query_loss=maml.query_loss,
    )
    method = given.gradient or Unrolled()
    return Program(forward, given.rule, method, steps, 1, head=maml._head_layer)


def _no_loss(*_: Any) -> Tensor:
    raise RuntimeError("this program has no loss of its own")


def plan(
    maml: MAML,
    held: Inventory,
    call: Call,
    method: GradientMethod | None,
    executor: ExecutorName | None,
    learns: bool = False,
) -> Call:
    """The call with how it runs decided, and checked by what is known of the model then.

    Raises:
        ValueError: a label that is no class of the model's; where it learns, something trainable
            that would get no gradient.
    """
    found, known = plan_of(maml, maml._plans, held, call, method, executor), call.known
    if call.seeds.device.type == "cpu":  # elsewhere reading labels back would wait for the device
        episodes: Any = call.data
        check_labels(call.program.forward.losses, found.classes, episodes)
        check_padding(found.normalises, episodes)
    if learns:
        check_reach(found.unreached, call.data)
    if known is None:
        return call._replace(program=found.applied(call.program))
    if known.applied is None or known.plan is not found:
        known.plan, known.applied, known.specs = found, found.applied(known.program), None
    return call._replace(program=known.applied)


def plan_of(
    maml: MAML,
    plans: Plans[Plan],
    held: Inventory,
    call: Call,
    method: GradientMethod | None,
    executor: ExecutorName | None,
    make: Callable[[Call, Asked], Plan] | None = None,
) -> Plan:
    """The plan for such calls, made when the first one is seen.

    Args:
        maml: whose settings count.
        plans: those made before, and this one.
        held: the model's tensors and modes now.
        call: one of such calls.
        method: the gradient method that is asked for; None for the planner to choose.
        executor: will run it.
        make: makes a plan; by default that of a meta-step.
    """
    given, known = maml.settings, call.known
    if known is None or known.key is None or known.key[0] is not method:
        key = _key(held, call, method, lanes(executor, call.seeds.device))
        if known is not None:
            known.key = method, key
    else:
        key = known.key[1]
    if (found := plans.find(key, held.call)) is not None:
        return found
    parallel = lanes(executor, call.seeds.device)
    asked = Asked(
        method, given.tasks_chunk, given.memory_budget, given.backend is not None, parallel
    )
    if make is not None:
        check_as_made(maml, call.meta)
        return plans.keep(key, make(call.by(depends=Dependencies()), asked))
    kind = (call.data.kind, general_signature(call.data), *key[1:])
    followed = maml._other_sizes.find(kind, call, held.call, asked)
    if followed is not None:
        return plans.keep(key, followed)
    check_as_made(maml, call.meta)
    made = _planned(maml, call.by(depends=Dependencies()), asked)
    return plans.keep(key, maml._other_sizes.keep(kind, made, call))


def _key(
    held: Inventory, call: Call, method: GradientMethod | None, parallel: int
) -> tuple[Any, ...]:
    """What must be equal for a plan to be for a call: first what is the data's."""
    program = call.program
    return (
        signature(call.data),
        held.training,
        key_of(method),
        program.steps,
        shapes(call.meta.adapted),
        program.forward.backend,
        parallel,
        environment(call.seeds.device.type),
        settings_key(program),
    )


def _planned(maml: MAML, call: Call, asked: Asked) -> Plan:
    """The planner's, with errors that say what is wrong with the data."""
    episodes: Any = call.data
    forward = call.program.forward
    check_padding(by_batch(forward.model, forward.own_statistics), episodes)
    losses = forward.losses
    try:
        with torch.enable_grad():  # it measures graphs, whatever the caller's mode
            found = make_plan(call, asked)
    except Exception as error:
        explain_failure(error, maml.module, losses, episodes)
        raise
    check_labels(losses, found.classes, episodes)
    return found


def shapes(parameters: Tensors) -> tuple[Any, ...]:
    """Names and shapes, for a key."""
    return tuple(parameters), tuple([p.shape for p in parameters.values()])


def check_as_made(maml: MAML, meta: Meta) -> None:
    """Raise ValueError where the model is no more the one for which the `MAML` was made."""
    layer = maml._head_layer
    if layer is not None and find_head_layer(maml.module, layer.head) != layer:
        raise ValueError(
            f"head={layer.head} was made for the last layer {layer.weight!r}, which is "
            "not the model's last one any more: make a new MAML of it."
        )
    if maml._anew != begun_anew(maml.module):
        raise ValueError(
            f"the model's parameters that begin anew are {begun_anew(maml.module)} now, and were "
            f"{maml._anew} when this MAML was made: make a new one."
        )
    adapted = {n: p.detach() for n, p in meta.adapted.items()}
    rates = maml.rule.rates(adapted, maml._rate_steps)
    for name in dict.fromkeys([*rates, *meta.rates]):
        was, now = (tuple(x[name].shape) if name in x else None for x in (meta.rates, rates))
        if name not in meta.rates or (was != now and name in rates):
            raise ValueError(
                f"rates that {maml.rule} learns are made with the MAML, and for "
                f"{name!r} {'there are none' if was is None else f'they have the shape {was}'}, "
                f"where the model as it is now needs {now}: make a new MAML of it, and copy what "
                "was learned so far with load_state_dict(..., strict=False)."
            )


def settings_key(program: Program) -> Any:
    """What a plan is for, besides the model as it is: what a `MAML` was given."""
    forward = program.forward
    functions = () if forward.host is None else forward.host.functions
    own = (forward.model, forward.own_statistics, program.rule, program.head)
    return key_of((*own, forward.loss, forward.query_loss, functions))
