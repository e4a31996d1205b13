"""`MetaSGD`: MAML with a learned rate for every element of every parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from fastmaml.compat.learn2learn._gradients import inner_gradients
from fastmaml.compat.learn2learn.algorithms.base_learner import BaseLearner
from fastmaml.compat.learn2learn.algorithms.maml import batched
from fastmaml.compat.learn2learn.utils.modules import clone_module
from fastmaml.compat.learn2learn.utils.tensors import clone_parameters
from fastmaml.engine.routing.cloning import replace_parameters
from fastmaml.engine.step.forward import Loss
from fastmaml.maml import maml as fast_maml
from fastmaml.rules.base import Rule, State, Tensors

M = TypeVar("M", bound=nn.Module)


def meta_sgd_update(
    model: M, lrs: Iterable[Tensor] | None = None, grads: Iterable[Tensor | None] | None = None
) -> M:
    """Put ``p - lr * g`` in the place of every parameter p, keeping the graph, and return `model`.

    A tied parameter moves once and stays tied.

    Args:
        model: changed in place.
        lrs: one for each of ``model.parameters()``, which it broadcasts with.
        grads: one for each parameter, None where it stays; by default the parameters' ``grad``.

    Raises:
        ValueError: no rates, or not as many rates or gradients as parameters.
    """
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters] if grads is None else list(grads)
    rates = [] if lrs is None else list(lrs)
    if not len(rates) == len(gradients) == len(parameters):
        raise ValueError(
            f"there are {len(rates)} rates and {len(gradients)} gradients for {len(parameters)} "
            "parameters: give one of each for every one of model.parameters()."
        )
    moving = zip(parameters, rates, gradients, strict=True)
    replace_parameters(model, {p: p - r * g for p, r, g in moving if g is not None})
    return model


class MetaSGD(BaseLearner):
    """Meta-SGD (Li et al. 2017): `MAML` whose learning rates are learned, one an element.

    Args:
        model: becomes ``module``; attributes that this object lacks are looked up there.
        lr: what every rate starts from.
        first_order: take inner gradients as constants; the rates still learn.
        lrs: the rates, one for each of ``model.parameters()``, instead of new ones from `lr`. They
            are ``lrs``: an `nn.ParameterList`, in a clone a list of tensors.
        allow_unused: leave parameters that a loss does not reach as they are.
        allow_nograd: leave parameters that do not require a gradient as they are.
    """

    module: nn.Module
    lrs: nn.ParameterList | list[Tensor]

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        first_order: bool = False,
        lrs: nn.ParameterList | list[Tensor] | None = None,
        *,
        allow_unused: bool = False,
        allow_nograd: bool = False,
    ) -> None:
        super().__init__()
        self.module = model
        if lrs is None:
            full = (torch.full_like(p, lr, requires_grad=False) for p in model.parameters())
            lrs = nn.ParameterList(nn.Parameter(rate) for rate in full)
        self.lrs = lrs
        self.first_order = first_order
        self.allow_unused, self.allow_nograd = allow_unused, allow_nograd

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """One step on `loss` with the learned rates, in place.

        Args:
            loss: one number, computed with this learner.
            first_order: for this step; None for the learner's own.

        Raises:
            RuntimeError: the loss cannot be differentiated with respect to every parameter; the
                message says which argument allows it. The loss can be used again.
        """
        first_order = self.first_order if first_order is None else first_order
        named = dict(self.module.named_parameters())
        gradients = inner_gradients(
            loss,
            list(named.values()),
            create_graph=not first_order,
            allow_unused=self.allow_unused,
            allow_nograd=self.allow_nograd,
            names=list(named),
        )
        moving = zip(named.values(), self.lrs, gradients, strict=True)
        replace_parameters(self.module, {p: p - r * g for p, r, g in moving if g is not None})

    def clone(self) -> MetaSGD:
        """A learner whose parameters and rates are clones of this one's, connected by autograd."""
        return MetaSGD(
            clone_module(self.module),
            first_order=self.first_order,
            lrs=clone_parameters(self.lrs),
            allow_unused=self.allow_unused,
            allow_nograd=self.allow_nograd,
        )

    def fast(self, loss: Loss | None = None, steps: int = 1, **options: Any) -> fast_maml.MAML:
        """The same meta-learner as a `fastmaml.MAML`, for all tasks of a meta-batch at once.

        As `MAML.fast`; the rates are shared, too.

        Args:
            loss: ``loss(output, targets)`` of one task.
            steps: inner steps.
            options: of `fastmaml.MAML`.

        Raises:
            RuntimeError: this is a clone, which has no parameters of its own.
        """
        names = [n for n, _ in self.module.named_parameters()]
        rule = SharedRates(dict(zip(names, self.lrs, strict=True)))
        settings = {"allow_unused": self.allow_unused, "allow_nograd": self.allow_nograd}
        given = {"rule": rule, "loss": loss, "steps": steps, **options}
        return batched(self.module, settings, self.first_order, given)


@final
@dataclass(frozen=True, eq=False)
class SharedRates(Rule):
    """θ' = θ − α∘g with rates α that are somebody's parameters already.

    Args:
        lrs: the rates by parameter name.
    """

    lrs: Mapping[str, Tensor]
    linear: ClassVar[bool] = True

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """The given rates of the adapted parameters."""
        return {name: self.lrs[name] for name in parameters}

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The update −α∘g of each parameter, and no state."""
        return {name: -rates[name] * g for name, g in gradients.items()}, state

    def scaling(
        self, step: int, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, float] | None:
        """The rates α, and the factor −1."""
        return rates, -1.0
