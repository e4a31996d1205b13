"""Where a task's learner has got to, as a tree of tensors, and its derivative along a direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastmaml.engine.base import functorch
from fastmaml.engine.step.task_learner import TaskLearner
from fastmaml.gradients.base import Carry
from fastmaml.rules.base import Tensors


def state_of(learner: TaskLearner) -> tuple[Tensors, Any]:
    """One task's parameters as they are by now, and its rule's state, without graphs."""
    shown = tree_map_only(Tensor, lambda x: learner._above(x.detach()), tuple(learner._carry))
    return shown[0], shown[1]


def go_on(learner: TaskLearner, state: tuple[Tensors, Any], steps: int) -> None:
    """Let a learner stand where another stood after so many inner steps.

    Args:
        learner: has taken no step.
        state: of one task, as from `state_of`.
        steps: how many steps led there; rules may go by it.
    """
    below = tree_map_only(Tensor, lambda x: _of_all(learner, x), state)
    parameters = {n: p.detach().requires_grad_() for n, p in below[0].items()}
    learner._carry, learner._steps = Carry(parameters, below[1]), steps


def queried(learner: TaskLearner) -> TaskLearner:
    """The learner, which is called on no support set any more."""
    learner._queries = True
    return learner


def start_along(learner: TaskLearner, direction: Tensors) -> Tensors:
    """A direction of θ, where the learner has taken no step.

    Args:
        learner: has taken no step.
        direction: of one task, one tensor like each of the parameters that adapt.
    """
    return {n: _of_all(learner, direction[n]).detach() for n in learner._carry.parameters}


def adapt_along(
    learner: TaskLearner, loss: Tensor, direction: Tensors, first_order: bool = False
) -> Tensors:
    """One inner step, and where it takes a direction: dθ' = dθ − α∘(H·dθ), by reverse mode.

    Costs a gradient and one product of the Hessian with a vector; no third derivative.

    Args:
        learner: of one task; it takes the step.
        loss: a scalar, computed with the learner.
        direction: from `start_along`, or from the step before.
        first_order: take the inner gradient for a constant: the direction stays.

    Raises:
        ValueError: the rule's update is not a factor times the gradient, or it learns the factor.
    """
    loop, names = learner._loop, list(learner._carry.parameters)
    parameters = [learner._carry.parameters[n] for n in names]
    scaling = loop.rule.scaling(learner._steps, learner._carry.parameters, learner._meta.rates)
    if scaling is None or scaling[0]:
        raise ValueError(
            f"the derivative along a direction is known for rules.SGD and Scheduled(SGD(...)) with "
            f"a fixed rate, not for {loop.rule}."
        )
    every = learner._below(loss).sum()
    found = torch.autograd.grad(every, parameters, create_graph=True, materialize_grads=True)
    along: Any = sum((g * direction[n]).sum() for n, g in zip(names, found, strict=True))
    products: Any = [None] * len(names)
    if along.requires_grad and not first_order:
        products = torch.autograd.grad(along, parameters, retain_graph=True, allow_unused=True)
    gradient = {n: g.detach() for n, g in zip(names, found, strict=True)}
    moved = loop.update(learner._steps, learner._carry, gradient, learner._meta)
    leaves = {n: p.detach().requires_grad_() for n, p in moved.parameters.items()}
    learner._carry, learner._steps = Carry(leaves, moved.state), learner._steps + 1
    return {
        n: direction[n] if h is None else direction[n] + scaling[1] * h.detach()
        for n, h in zip(names, products, strict=True)
    }


def outputs_along(learner: TaskLearner, outputs: list[Tensor], direction: Tensors) -> list[Tensor]:
    """The derivatives of some outputs of a task along a direction of its parameters.

    Reverse mode twice: the product with the Jacobian's transpose is linear in what it is given, and
    its derivative by that is the product with the Jacobian itself.

    Args:
        learner: of the task, which computed the outputs since its last step.
        outputs: tensors of one task.
        direction: of the parameters as they are by now.
    """
    parameters = list(learner._carry.parameters.values())
    below = [_outputs_of_all(learner, x) for x in outputs]
    dummies = [torch.zeros_like(x, requires_grad=True) for x in below]
    total: Any = sum((x * w).sum() for x, w in zip(below, dummies, strict=True))
    back = torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True)
    along: Any = sum((g * d).sum() for g, d in zip(back, direction.values(), strict=True))
    found = torch.autograd.grad(along, dummies, materialize_grads=True)
    pairs = zip(found, outputs, strict=True)
    return [
        functorch.add_batch_dim(t, 0, learner._level) if _own(learner, x) else t for t, x in pairs
    ]


def _own(learner: TaskLearner, x: Tensor) -> bool:
    """Whether every task under vmap has an x of its own."""
    return learner._level >= 0 and functorch.maybe_get_level(x) == learner._level


def _outputs_of_all(learner: TaskLearner, x: Tensor) -> Tensor:
    """What stands for all tasks, their dimension first."""
    if not _own(learner, x):
        return x
    return functorch.get_unwrapped(x).movedim(functorch.maybe_get_bdim(x), 0)


def _of_all(learner: TaskLearner, x: Tensor) -> Tensor:
    """What stands for all tasks, ``[tasks, ...]``, where `x` is one task's."""
    return x.unsqueeze(0) if learner._level < 0 else learner._below(x)
