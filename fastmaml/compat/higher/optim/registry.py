"""Which differentiable optimizer continues which of `torch.optim`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastmaml.compat.higher.functional_module import FunctionalModule
from fastmaml.compat.higher.optim.adadelta import DifferentiableAdadelta
from fastmaml.compat.higher.optim.adagrad import DifferentiableAdagrad
from fastmaml.compat.higher.optim.adam import DifferentiableAdam, DifferentiableAdamW
from fastmaml.compat.higher.optim.adamax import DifferentiableAdamax
from fastmaml.compat.higher.optim.asgd import DifferentiableASGD
from fastmaml.compat.higher.optim.base import DifferentiableOptimizer, Override
from fastmaml.compat.higher.optim.rmsprop import DifferentiableRMSprop
from fastmaml.compat.higher.optim.rprop import DifferentiableRprop
from fastmaml.compat.higher.optim.sgd import DifferentiableSGD
from fastmaml.compat.higher.tree import Device

# The one thing that this package remembers between calls, since register_optim(...) is a statement.
_DIFFERENTIABLE: dict[type[torch.optim.Optimizer], type[DifferentiableOptimizer]] = {
    torch.optim.SGD: DifferentiableSGD,
    torch.optim.Adam: DifferentiableAdam,
    torch.optim.AdamW: DifferentiableAdamW,
    torch.optim.RMSprop: DifferentiableRMSprop,
    torch.optim.Adagrad: DifferentiableAdagrad,
    torch.optim.Adadelta: DifferentiableAdadelta,
    torch.optim.Adamax: DifferentiableAdamax,
    torch.optim.ASGD: DifferentiableASGD,
    torch.optim.Rprop: DifferentiableRprop,
}


def register_optim(
    optim_type: type[torch.optim.Optimizer], diff_optim_type: type[DifferentiableOptimizer]
) -> None:
    """Let `innerloop_ctx` take optimizers of a type of your own, or replace one of ours.

    Args:
        optim_type: the optimizer's exact type; subclasses are registered by themselves.
        diff_optim_type: does the same with differentiable operations. Subclass
            `DifferentiableOptimizer` and give `_update`.

    Raises:
        TypeError: one of the two is no such type.
    """
    if not (isinstance(optim_type, type) and issubclass(optim_type, torch.optim.Optimizer)):
        raise TypeError(f"register_optim({optim_type!r}, ...): give a torch.optim.Optimizer type.")
    if not (isinstance(diff_optim_type, type)) or not issubclass(
        diff_optim_type, DifferentiableOptimizer
    ):
        raise TypeError(
            f"register_optim(..., {diff_optim_type!r}): give a subclass of "
            "higher.optim.DifferentiableOptimizer."
        )
    _DIFFERENTIABLE[optim_type] = diff_optim_type


def get_diff_optim(
    opt: torch.optim.Optimizer,
    reference_params: Iterable[Tensor],
    fmodel: FunctionalModule | None = None,
    device: Device = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """The differentiable optimizer that continues `opt` from its present state.

    Args:
        opt: an optimizer over all or some of `reference_params`; it does not change.
        reference_params: the model's parameters, in order.
        fmodel: a functional model of it, which then receives the new parameters of every step;
            without one, ``step`` needs ``params=``.
        device: where the copy of the optimizer's state goes.
        override: see `DifferentiableOptimizer.step`.
        track_higher_grads: False detaches every step.
        **kwargs: further arguments of the optimizer's type, such as `grad_callback`.

    Raises:
        ValueError: the type of `opt` is unknown (see `register_optim`), it holds a parameter that
            is not among `reference_params`, or `override` does not fit.
    """
    return _differentiable(type(opt))(
        opt,
        reference_params,
        fmodel=fmodel,
        device=device,
        override=override,
        track_higher_grads=track_higher_grads,
        **kwargs,
    )


def create_diff_optim(
    opt_type: type[torch.optim.Optimizer],
    opt_kwargs: dict[str, Any] | None = None,
    params: Iterable[Any] | None = None,
    fmodel: FunctionalModule | None = None,
    device: Device = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """A differentiable optimizer in its initial state, without one of `torch.optim` to continue.

    Args:
        opt_type: the `torch.optim` type.
        opt_kwargs: arguments of its constructor, for example ``{"lr": 0.1}``.
        params: the parameters to move, or parameter groups (dicts); those of `fmodel` by default.
            Their values are not used.
        fmodel, device, override, track_higher_grads, **kwargs: as for `get_diff_optim`.

    Raises:
        ValueError: neither `params` nor `fmodel` is given, or as for `get_diff_optim`.
    """
    differentiable = _differentiable(opt_type)
    known = list(fmodel.parameters()) if fmodel is not None else []
    given = list(known if params is None else params)
    if not given:
        raise ValueError("create_diff_optim needs params= or fmodel=: what is it to move?")
    groups = given if isinstance(given[0], dict) else [{"params": given}]
    groups = [{**g, "params": _listed(g["params"])} for g in groups]
    own = [p for g in groups for p in g["params"]]
    # Groups of the model's own parameters keep their places in it, whatever the order.
    places = {id(p) for p in known}
    reference = known if own and all(id(p) in places for p in own) else own
    stand_ins = {id(p): torch.zeros_like(p, requires_grad=True) for p in reference}
    inputs = [{**g, "params": [stand_ins[id(p)] for p in g["params"]]} for g in groups]
    opt = opt_type(inputs, **(opt_kwargs or {}))
    return differentiable(
        opt,
        stand_ins.values(),
        fmodel=fmodel,
        device=device,
        override=override,
        track_higher_grads=track_higher_grads,
        **kwargs,
    )


def _listed(params: Any) -> list[Tensor]:
    return [params] if isinstance(params, Tensor) else list(params)


def _differentiable(opt_type: type[torch.optim.Optimizer]) -> type[DifferentiableOptimizer]:
    found = _DIFFERENTIABLE.get(opt_type)
    if found is None:
        known = ", ".join(sorted(t.__name__ for t in _DIFFERENTIABLE))
        raise ValueError(
            f"there is no differentiable version of {opt_type.__module__}.{opt_type.__qualname__} "
            f"(there are of {known}). Write one and announce it: "
            f"higher.register_optim({opt_type.__name__}, YourDifferentiableOptimizer)."
        )
    return found
