"""Parts of a run that a configuration names, whatever is learned."""

from __future__ import annotations

import torch

from fastmaml import rules
from fastmaml.gradients import GradientMethod
from fastmaml.gradients.names import NUMBERED, OFFLOADING, named
from fastmaml.training.config import RunConfig


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ValueError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
