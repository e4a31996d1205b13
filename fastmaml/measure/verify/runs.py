"""The two sides of a comparison: what fastmaml computes, and what a loop of one's own does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.dropout import _DropoutNd

from fastmaml.engine.model.buffers import forget_running_statistics
from fastmaml.engine.model.inventory import take_inventory
from fastmaml.engine.routing.called_by_hand import written_out
from fastmaml.engine.routing.mode import without_cudnn
from fastmaml.maml import MAML
from fastmaml.maml.plan import meta_of
from fastmaml.measure.verify.calls import Verified
from fastmaml.rules.base import Tensors

Reference = Callable[..., Tensor | None]
"""A loop of one's own; see `verify`."""


def takes_rates(reference: Reference) -> bool:
    """Whether a loop has a parameter of the name ``rates``."""
    try:
        return "rates" in inspect.signature(reference).parameters
    except ValueError:  # compiled code may not tell
        return False


_HIGHER = (
    " higher makes such copies by default: innerloop_ctx and monkeypatch need "
    "copy_initial_weights=False."
)


class Run(NamedTuple):
    """A meta-loss and its gradient by parameter.

    Attributes:
        loss: scalar, or None where it was not returned.
        gradient: by the model's own names, and ``rates.`` for what the rule learns; None where
            nothing reached the parameter.
    """

    loss: Tensor | None
    gradient: dict[str, Tensor | None]


def of_fastmaml(call: Verified, precise: float) -> tuple[Run, Run]:
    """The meta-gradient as it is set up, and that of first order.

    Args:
        call: of a copy.
        precise: the relative difference of two losses that rounding may make.
    """
    maml = call.maml
    first = call.run().loss.detach()
    out = call.run()
    if not (out.loss.detach() - first).abs() <= precise * first.abs():
        layers = [
            f"{name} ({type(m).__name__})"
            for name, m in maml.module.named_modules()
            if m.training
            and isinstance(m, _DropoutNd | nn.RNNBase | nn.MultiheadAttention)
            and (m.p if isinstance(m, _DropoutNd) else m.dropout)
        ]
        raise ValueError(
            f"two runs of {call} give the losses {first:.6g} and {out.loss:.6g}: the model "
            "draws random numbers, and no two loops draw the same. Switch that off to compare them "
            f"({', '.join(layers) or 'dropout, noise'}): call .eval() of those layers, or set "
            "their p to 0."
        )
    out.loss.backward()
    exact = Run(out.loss.detach(), _take_gradients(maml))
    call.run(first_order=True).loss.backward()
    return exact, Run(None, _take_gradients(maml))


def of_the_plain_loop(call: Verified) -> Run:
    """One task at a time in plain PyTorch; it sets the gradients of the copy that is called."""
    maml = call.maml
    losses = call.losses()
    if maml.batch_norm == "batch":
        forget_running_statistics(maml.module)
    written_out(maml.module)
    found = []
    # The fused kernels have no second derivative, and weight_norm's is wrong.
    with sdpa_kernel(SDPBackend.MATH), without_cudnn():
        for loss in losses:
            (loss / call.tasks).backward()
            found.append(loss.detach())
    return Run(torch.stack(found).mean(), _take_gradients(maml))


def _take_gradients(maml: MAML) -> dict[str, Tensor | None]:
    """Of the parameters that are learned, and remove them; the model's own names, and rates."""
    found = {name: p.grad for name, p in _learned(maml).items()}
    maml.zero_grad()
    return found


def _learned(maml: MAML) -> dict[str, nn.Parameter]:
    """The parameters that are learned: by the model's own names, and rates."""
    named = maml.named_parameters()
    return {name.removeprefix("module."): p for name, p in named if p.requires_grad}


def rates_of(maml: MAML) -> Tensors:
    """What the rule learns, by the rule's own names."""
    return meta_of(maml, take_inventory(maml.module)).rates


def of_reference(reference: Reference, call: Verified) -> Run:
    """What the user's loop gives for the copies of the model, the data and the rates."""
    maml = call.maml
    arguments, keywords = call.given
    parameters = _learned(maml)
    if takes_rates(reference):
        if "rates" in keywords:
            raise ValueError(
                f"rates= is an argument of {call}, and reference would be given learned rates by "
                "that name: rename that of the function."
            )
        keywords = {**keywords, "rates": rates_of(maml)}
    else:
        own = {id(p) for p in maml.module.parameters()}
        parameters = {name: p for name, p in parameters.items() if id(p) in own}
    loss = reference(maml.module, *arguments, **keywords)
    gradient = {n: p.grad for n, p in parameters.items()}
    called = any(g is not None for g in gradient.values())
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(
            f"reference returned a tensor of shape {list(loss.shape)}; return the "
            "mean query loss over tasks, a scalar: torch.stack(losses).mean()."
        )
    if isinstance(loss, Tensor) and loss.requires_grad:
        if called:
            raise ValueError(
                "reference called backward() and returned a loss that is still "
                "connected: return it without calling backward(), or return loss.detach()."
            )
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradient = dict(zip(parameters, found, strict=True))
    elif not called:
        got = "a tensor that requires no gradient" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(
            f"reference returned {got} and set no gradient of the model's "
            "parameters: return the mean query loss as a tensor that is connected to them (no "
            ".item(), .detach(), .data or torch.no_grad() on the way), or call backward() inside."
            + _HIGHER
        )
    if all(g is None for g in gradient.values()):
        raise ValueError(
            "the loss that reference returned reaches no parameter of `model`: "
            "let the loop use the model that it is given (a copy of maml.module), not another, and "
            "start from its parameters, not from detached copies of them." + _HIGHER
        )
    return Run(loss.detach().reshape(()) if isinstance(loss, Tensor) else None, gradient)
