"""`torch.optim.Adagrad`, differentiable."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.elementwise import Elementwise, Group, State
from fastmaml.compat.higher.optim.numerics import counted, is_on, plus, plus_ratio
from fastmaml.rules.base import safe_sqrt


@final
class DifferentiableAdagrad(Elementwise):
    """Adagrad (Duchi et al., 2011), with a decaying learning rate.

    Where the sum of squares is zero its root contributes no slope, instead of an infinite one.
    """

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        if is_on(group["weight_decay"]):
            g = plus(g, group["weight_decay"], p)
        rate = group["lr"] / (1 + (counted(state) - 1) * group["lr_decay"])
        total = state.get("sum")
        if total is None:
            total = torch.full_like(p, group.get("initial_accumulator_value", 0.0))
        total = state["sum"] = torch.addcmul(total, g, g)
        return plus_ratio(p, -rate, g, safe_sqrt(total) + group["eps"])
