"""`LearnableOptimizer`: descent whose transform of gradients learns from the next gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.compat.learn2learn.optim.parameter_update import Transform
from fastmaml.engine.routing.cloning import replace_parameters


class LearnableOptimizer(nn.Module):
    """Moves a model by ``p - lr * transform(g)``; `parameters` are the transforms'.

    After `step` the next ``backward()`` gives gradients both to the model and to the transforms, so
    an outer optimizer over ``parameters()`` learns these (hyper-gradient descent, Baydin et al.
    2018). The graph goes back one step only.

    Args:
        model: moved in place; not a sub-module of this one. Its parameters become results of
            autograd that keep their ``grad``.
        transform: ``transform(parameter)`` makes the module that turns this parameter's gradient
            into its update, or returns None where the gradient is the update.
        lr: a constant factor of the updates.

    Raises:
        ValueError: `model` is no module.
    """

    def __init__(self, model: nn.Module, transform: Transform, lr: float = 1.0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
        self.info = {"model": model}  # in a dict it is no sub-module
        made = [transform(p) for p in model.parameters()]
        self.transforms = nn.ModuleList(nn.Identity() if t is None else t for t in made)
        self.lr = lr

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Move every parameter that has a gradient.

        Args:
            closure: called first, under `torch.enable_grad`, if given.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        model = self.info["model"]
        moved: dict[Tensor, Tensor] = {}
        for parameter, transform in zip(model.parameters(), self.transforms, strict=True):
            if parameter.grad is not None:
                update = self.lr * transform(parameter.grad.detach())
                moved[parameter] = (parameter.detach() - update).requires_grad_()
                moved[parameter].retain_grad()
        replace_parameters(model, moved)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Forget the gradients of the model; an outer optimizer sees to the transforms'.

        Args:
            set_to_none: leave no gradient instead of zeros.
        """
        for parameter in self.info["model"].parameters():
            if parameter.grad is not None:
                # Not in place: the last step's graph may still hold it.
                parameter.grad = None if set_to_none else torch.zeros_like(parameter.detach())
