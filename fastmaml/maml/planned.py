"""What a `MAML`'s settings, and its model as it is now, make of a meta-step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.guards.plans import Plans, environment, key_of
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.model.scope import Scope, adapted_names, select
from fastmaml.engine.planning.plan import Plan, make_plan
from fastmaml.engine.recording.executors import chosen_backend, lanes
from fastmaml.engine.step.checks import check_labels, explain_failure, signature
from fastmaml.engine.step.forward import Loss, TaskForward
from fastmaml.engine.step.head_layer import HeadLayer, find_head_layer
from fastmaml.engine.step.meta_step import Program
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import GradientMethod, Unrolled
from fastmaml.gradients.base import Meta
from fastmaml.integrations.transformers.host import find_host
from fastmaml.maml.settings import rate_key
from fastmaml.rules.base import Rule, Tensors


class Settings(Protocol):
    """The attributes of a `MAML` that are read here."""

    module: nn.Module
    loss: Loss | None
    rule: Rule
    gradient: GradientMethod | None
    scope: Scope
    head: HeadLayer | None
    backend: Any
    batch_norm: Any
    tasks_chunk: int | None
    memory_budget: int | None
    rates: nn.ParameterDict
    _rate_names: list[str]
    _rate_steps: int
    _plans: Plans[Plan]


def meta_of(maml: Settings, held: Inventory) -> Meta:
    """The meta-parameters as they are now; frozen ones are not among them."""
    named = held.parameters
    chosen = select(named, maml.scope) or adapted_names(maml.module, maml.scope)
    own = () if maml.head is None else maml.head.names
    adapted = {n: named[n] for n in chosen if n not in own}
    shared = {
        n: p for n, p in named.items() if p.requires_grad and n not in adapted and n not in own
    }
    rates = {n: maml.rates[rate_key(n)] for n in maml._rate_names}
    return Meta(adapted, shared, rates)  # type: ignore[arg-type]  # Parameters are tensors


def program_of(
    maml: Settings, held: Inventory, steps: int, executor: str | None, needs_loss: bool = True
) -> Program:
    """The meta-step before anything is planned; `executor` is the one that will run it."""
    if maml.loss is None and needs_loss:
        raise ValueError(
            "this MAML has no loss: give loss= when you make it, for example "
            "MAML(model, lr=0.4, loss=torch.nn.functional.cross_entropy)."
        )
    heads = () if maml.head is None else maml.head.names
    named = held.parameters.items()
    frozen: Tensors = {n: p for n, p in named if not p.requires_grad or n in heads}
    own = maml.batch_norm == "batch"
    keeps = not own and any(held.training)
    buffers = {n: b.clone() if keeps else b for n, b in held.buffers.items()}
    backend = chosen_backend(maml.backend, executor, held.device)
    forward = TaskForward(
        maml.module, maml.loss or _no_loss, frozen, buffers, own, keeps, batched=False,
        backend=backend, host=find_host(maml.module),
    )  # fmt: skip
    method = maml.gradient or Unrolled()
    return Program(forward, maml.rule, method, steps, 1, head=maml.head, call=held.call)


def _no_loss(*_: Any) -> Tensor:
    raise RuntimeError("this program has no loss of its own")


def plan_of(
    maml: Settings,
    program: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    gradient: GradientMethod | None,
    held: Inventory,
    executor: str | None,
) -> Plan:
    """The plan for such episodes, made when they are first seen; `executor` will run it."""
    parallel = lanes(executor, seeds.device)
    key = (
        signature(episodes), held.training, key_of(gradient), program.steps, shapes(meta.adapted),
        program.forward.backend, parallel, environment(seeds.device.type), settings_key(program),
    )  # fmt: skip
    if (plan := maml._plans.find(key, held.call)) is not None:
        return plan
    check_as_made(maml, meta)
    program = replace(program, depends=Dependencies())
    try:
        with torch.enable_grad():  # it measures graphs, whatever the caller's mode
            plan = make_plan(
                program,
                meta,
                episodes,
                seeds,
                gradient,
                maml.tasks_chunk,
                maml.memory_budget,
                fixed_backend=maml.backend is not None,
                lanes=parallel,
            )
    except Exception as error:
        explain_failure(error, maml.module, maml.loss, episodes)
        raise
    check_labels(maml.loss, plan.classes, episodes)
    return maml._plans.keep(key, plan)


def shapes(parameters: Tensors) -> tuple[Any, ...]:
    """Names and shapes, for a key."""
    return tuple(parameters), tuple([p.shape for p in parameters.values()])


def check_as_made(maml: Settings, meta: Meta) -> None:
    """Raise ValueError where the model is no more the one for which the `MAML` was made."""
    if maml.head is not None and find_head_layer(maml.module, maml.head.head) != maml.head:
        raise ValueError(
            f"head={maml.head.head} was made for the last layer {maml.head.weight!r}, which is "
            "not the model's last one any more: make a new MAML of it."
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
    own = (forward.model, forward.loss, forward.own_statistics, program.rule, program.head)
    return key_of((*own, functions))
