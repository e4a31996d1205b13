"""`torch.optim.RMSprop`, differentiable."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.elementwise import Elementwise, Group, State
from fastmaml.compat.higher.optim.numerics import (
    counted,
    decayed,
    decayed_square,
    is_on,
    plus,
    plus_ratio,
)
from fastmaml.rules.base import safe_sqrt


@final
class DifferentiableRMSprop(Elementwise):
    """RMSprop (Tieleman and Hinton, 2012), plain or centered (Graves, 2013), with momentum.

    Where the mean square is zero its root contributes no slope, instead of an infinite one.
    """

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        alpha, momentum = group["alpha"], group["momentum"]
        if is_on(group["weight_decay"]):
            g = plus(g, group["weight_decay"], p)
        counted(state)
        zeros = torch.zeros_like(p)
        square = state["square_avg"] = decayed_square(state.get("square_avg", zeros), alpha, g)
        if group["centered"]:
            mean = state["grad_avg"] = decayed(state.get("grad_avg", zeros), alpha, g)
            square = square - mean * mean
        root = safe_sqrt(square) + group["eps"]
        if not is_on(momentum):
            return plus_ratio(p, -group["lr"], g, root)
        buffer = momentum * state.get("momentum_buffer", zeros) + g / root
        state["momentum_buffer"] = buffer
        return plus(p, -group["lr"], buffer)
