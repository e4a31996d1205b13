"""`torch.optim.Adam` and `torch.optim.AdamW`, differentiable."""

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
class DifferentiableAdam(Elementwise):
    """Adam (Kingma and Ba, 2015), with AMSGrad, and weight decay in the gradient or decoupled.

    Where the second moment is zero its root contributes no slope, instead of an infinite one; the
    first moment's slope there is lr/eps.
    """

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        lr, decay = group["lr"], group["weight_decay"]
        beta1, beta2 = group["betas"]
        if is_on(decay):
            if group.get("decoupled_weight_decay", False):
                p = p * (1 - lr * decay)
            else:
                g = plus(g, decay, p)
        step = counted(state)
        zeros = torch.zeros_like(p)
        mean = state["exp_avg"] = decayed(state.get("exp_avg", zeros), beta1, g)
        square = state["exp_avg_sq"] = decayed_square(state.get("exp_avg_sq", zeros), beta2, g)
        if group["amsgrad"]:
            square = torch.maximum(state.get("max_exp_avg_sq", zeros), square)
            state["max_exp_avg_sq"] = square
        denominator = safe_sqrt(square) / (1 - beta2**step) ** 0.5 + group["eps"]
        return plus_ratio(p, -lr / (1 - beta1**step), mean, denominator)


DifferentiableAdamW = DifferentiableAdam  # torch's AdamW is an Adam whose groups say "decoupled"
