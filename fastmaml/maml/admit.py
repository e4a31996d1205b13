"""The first stage of a meta-step: is this a meta-batch for this model? If so, a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastmaml.engine.base import functorch
from fastmaml.engine.base.seeds import task_seeds
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.recording.executors import ExecutorName
from fastmaml.engine.step.data import TaskArguments, TaskData
from fastmaml.engine.step.program import Call
from fastmaml.engine.step.user_function import UserFunction
from fastmaml.episodes.batch import Episodes, without_inference_mode
from fastmaml.maml.plan import meta_of, program_of
from fastmaml.maml.settings import task_weights, weights_by_step

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML


def admit(
    maml: MAML,
    held: Inventory,
    episodes: Episodes,
    steps: int,
    executor: ExecutorName | None,
    step_weights: Sequence[float] | Tensor | None = None,
    seeds: Tensor | None = None,
) -> Call:
    """The call for such episodes, all tasks alike in weight; how it runs is not decided.

    Args:
        maml: whose settings count.
        held: the model's tensors and modes now.
        episodes: the meta-batch.
        steps: inner steps.
        executor: will run it.
        step_weights: of the query losses after inner steps 1, ..., steps.
        seeds: ``[tasks]``; None draws them.

    Raises:
        ValueError: the episodes are none, are elsewhere than the model, or the MAML has no loss.
    """
    if not isinstance(episodes, Episodes):
        raise ValueError(f"episodes is a {type(episodes).__name__}; give a fastmaml.Episodes.")
    if episodes.later and len(episodes.later) + 1 < steps:
        raise ValueError(
            f"{len(episodes.later) + 1} support sets for {steps} inner steps: give one for each, "
            "or a single one for all."
        )
    check_device(held.device, episodes)
    episodes = without_inference_mode(episodes)
    by_step = weights_by_step(step_weights, steps, held.dtype, held.device)
    known = maml._known.of(maml, held, episodes, steps, executor)
    seeds = task_seeds(episodes.tasks, held.device) if seeds is None else seeds
    call = Call(known.program, known.meta, episodes, seeds, known.weights, by_step)
    return call._replace(users=held.call, known=known)


def admit_function(
    maml: MAML,
    held: Inventory,
    data: Episodes | TaskArguments,
    function: UserFunction,
    seeds: Tensor | None = None,
) -> Call:
    """The same for a user's own function of a task."""
    check_device(held.device, data)
    meta = meta_of(maml, held)
    seeds = task_seeds(data.tasks, held.device) if seeds is None else seeds
    program = program_of(maml, held, 1, maml.executor, needs_loss=False)
    weights = task_weights(None, held.dtype, held.device, len(seeds))
    call = Call(replace(program, method=function), meta, data, seeds, weights, [0.0, 1.0])
    return call._replace(users=held.call)


def check_device(device: torch.device, data: TaskData) -> None:
    """Raise ValueError where a tensor of the tasks is not on `device`, the model's.

    RuntimeError, where there is no place at all for a meta-step.
    """
    if functorch.maybe_current_level() is not None:
        raise RuntimeError(
            "a meta-step is no function for torch.func.grad, vmap or jvp: call maml(episodes) "
            "outside of them, and out.loss.backward() or torch.autograd.grad(out.loss, parameters)."
        )
    for name, tensors in data.named().items():
        for x in tensors:
            if x.device != device:
                raise ValueError(
                    f"the {name} is on {x.device} and the model on {device}: move one of them, "
                    f"for example with episodes.to({str(device)!r})."
                )
