"""`torch.optim.Adamax`, differentiable."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.elementwise import Elementwise, Group, State
from fastmaml.compat.higher.optim.numerics import counted, decayed, is_on, plus, plus_ratio


@final
class DifferentiableAdamax(Elementwise):
    """Adamax (Kingma and Ba, 2015): Adam by the largest decayed |gradient|."""

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        beta1, beta2 = group["betas"]
        if is_on(group["weight_decay"]):
            g = plus(g, group["weight_decay"], p)
        step = counted(state)
        zeros = torch.zeros_like(p)
        mean = state["exp_avg"] = decayed(state.get("exp_avg", zeros), beta1, g)
        largest = torch.maximum(beta2 * state.get("exp_inf", zeros), g.abs() + group["eps"])
        state["exp_inf"] = largest
        return plus_ratio(p, -group["lr"] / (1 - beta1**step), mean, largest)
