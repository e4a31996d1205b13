"""The two sides of a comparison: what fastmaml computes, and what a loop of one's own does."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import FirstOrder
from fastmaml.maml import MAML

Reference = Callable[[nn.Module, Episodes], Tensor | None]
"""A loop of one's own; see `verify`."""


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


def of_fastmaml(maml: MAML, episodes: Episodes, precise: float) -> tuple[Run, Run]:
    """The meta-gradient as it is set up, and that of first order.

    Args:
        precise: the relative difference of two losses that rounding may make.
    """
    first = maml(episodes).loss.detach()
    out = maml(episodes)
    if not (out.loss.detach() - first).abs() <= precise * first.abs():
        layers = [
            f"{name} ({type(m).__name__})"
            for name, m in maml.module.named_modules()
            if m.training
            and isinstance(m, _DropoutNd | nn.RNNBase | nn.MultiheadAttention)
            and (m.p if isinstance(m, _DropoutNd) else m.dropout)
        ]
        raise ValueError(
            f"two runs of maml(episodes) give the losses {first:.6g} and {out.loss:.6g}: the model "
            "draws random numbers, and no two loops draw the same. Switch that off to compare them "
            f"({', '.join(layers) or 'dropout, noise'}): call .eval() of those layers, or set "
            "their p to 0."
        )
    out.loss.backward()
    exact = Run(out.loss.detach(), take_gradients(maml))
    maml(episodes, gradient=FirstOrder()).loss.backward()
    return exact, Run(None, take_gradients(maml))


def take_gradients(maml: MAML) -> dict[str, Tensor | None]:
    """Of the parameters that are learned, and remove them; the model's own names, and rates."""
    found = {
        name.removeprefix("module."): p.grad
        for name, p in maml.named_parameters()
        if p.requires_grad
    }
    maml.zero_grad()
    return found


def of_reference(reference: Reference, model: nn.Module, episodes: Episodes) -> Run:
    """What the user's loop gives for a copy of the model."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    loss = reference(model, episodes)
    gradient = {n: p.grad for n, p in parameters.items()}
    called = any(g is not None for g in gradient.values())
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(
            f"reference(model, episodes) returned a tensor of shape {list(loss.shape)}; return the "
            "mean query loss over tasks, a scalar: torch.stack(losses).mean()."
        )
    if isinstance(loss, Tensor) and loss.requires_grad:
        if called:
            raise ValueError(
                "reference(model, episodes) called backward() and returned a loss that is still "
                "connected: return it without calling backward(), or return loss.detach()."
            )
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradient = dict(zip(parameters, found, strict=True))
    elif not called:
        got = "a tensor that requires no gradient" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(
            f"reference(model, episodes) returned {got} and set no gradient of the model's "
            "parameters: return the mean query loss as a tensor that is connected to them (no "
            ".item(), .detach(), .data or torch.no_grad() on the way), or call backward() inside."
            + _HIGHER
        )
    if all(g is None for g in gradient.values()):
        raise ValueError(
            "the loss that reference(model, episodes) returned reaches no parameter of `model`: "
            "let the loop use the model that it is given (a copy of maml.module), not another, and "
            "start from its parameters, not from detached copies of them." + _HIGHER
        )
    return Run(loss.detach().reshape(()) if isinstance(loss, Tensor) else None, gradient)
