"""`torch.optim.Adadelta`, differentiable."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.elementwise import Elementwise, Group, State
from fastmaml.compat.higher.optim.numerics import counted, decayed_square, is_on, plus


@final
class DifferentiableAdadelta(Elementwise):
    """Adadelta (Zeiler, 2012, arXiv 1212.5701)."""

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        rho, eps = group["rho"], group["eps"]
        if is_on(group["weight_decay"]):
            g = plus(g, group["weight_decay"], p)
        counted(state)
        zeros = torch.zeros_like(p)
        moved = state.get("acc_delta", zeros)
        square = state["square_avg"] = decayed_square(state.get("square_avg", zeros), rho, g)
        delta = (moved + eps).sqrt() / (square + eps).sqrt() * g
        state["acc_delta"] = decayed_square(moved, rho, delta)
        return plus(p, -group["lr"], delta)
