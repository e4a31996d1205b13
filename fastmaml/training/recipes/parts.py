"""Parts of a run that a configuration names, whatever is learned."""

from __future__ import annotations

import os

import torch
from torch import nn

from fastmaml import rules
from fastmaml.engine.model.scope import Scope
from fastmaml.gradients import GradientMethod
from fastmaml.gradients.names import NUMBERED, OFFLOADING, named
from fastmaml.maml.plus_plus import all_but_norms
from fastmaml.models import per_step_batch_norm
from fastmaml.training.config import RunConfig
from fastmaml.training.ranks import launched


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ValueError: the device is unknown or absent, or would be that of several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launched():
        name = _of_rank(name)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r} cannot be used here ({reason}). `fastmaml info` lists the devices; "
            "--device cpu always works."
        ) from None
    return device


def _of_rank(name: str) -> str:
    """The device of this process, of those that torchrun started."""
    if name.startswith("cuda:"):
        raise ValueError(
            f"device={name!r} would put every process of torchrun onto one device: give cuda, of "
            "which each takes its own, or cpu."
        )
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" else name


def rule_of(config: RunConfig) -> rules.Rule:
    """How parameters move."""
    rule = _mover(config.rule, config.inner_lr, config.inner_momentum)
    return rules.chain(rules.Proximal(config.proximal), rule) if config.proximal else rule


def _mover(name: str, lr: float, momentum: float) -> rules.Rule:
    match name:
        case "momentum":
            return rules.Momentum(lr, momentum)
        case "adam":
            return rules.Adam(lr)
        case "meta-sgd":
            return rules.MetaSGD(lr)
        case "lslr":
            return rules.LSLR(lr)
        case "meta-curvature":
            return rules.MetaCurvature(lr)
        case "kfo":
            return rules.KFO(lr)
        case "alfa":
            return rules.ALFA(lr)
    return rules.SGD(lr)


def with_per_step_rows(model: nn.Module, steps: int, scope: Scope) -> tuple[nn.Module, Scope]:
    """A copy of the model with per-step BatchNorm layers, and what adapts of it.

    Args:
        model: with BatchNorm layers.
        steps: inner steps.
        scope: "all" for all but these layers; another one counts as it is.

    Raises:
        ValueError: it has no BatchNorm layers, or some of another kind.
    """
    try:
        model = per_step_batch_norm(model, steps)
    except ValueError as error:
        raise ValueError(f"per_step_batch_norm=True: {error}") from None
    return model, all_but_norms(model) if scope == "all" else scope


def gradient_of(config: RunConfig) -> GradientMethod | None:
    """How the inner loop is differentiated; None for `MAML` to choose."""
    name = config.gradient
    if name == "auto":
        if config.offload:
            raise ValueError(
                "offload=True with gradient='auto': say which, "
                f"{' or '.join(f'gradient={own!r}' for own in OFFLOADING)}."
            )
        return None
    numbers = {"segments": config.segments, "last": config.last}
    return named(name, numbers[NUMBERED[name]] if name in NUMBERED else None, config.offload)
