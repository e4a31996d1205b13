"""`torch.optim.Rprop`, differentiable."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.elementwise import Elementwise, Group, State
from fastmaml.compat.higher.optim.numerics import counted


@final
class DifferentiableRprop(Elementwise):
    """Rprop (Riedmiller and Braun, 1993): the sign of the gradient with a step size an element.

    The sign has no slope, so gradients reach the initial parameters through their identity only,
    and learned hyper-parameters through the step sizes.
    """

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        smaller, larger = group["etas"]
        smallest, largest = group["step_sizes"]
        counted(state)
        ones = torch.ones_like(p)
        agrees = (g * state.get("prev", torch.zeros_like(p))).sign()
        factor = torch.where(agrees > 0, larger * ones, ones)
        factor = torch.where(agrees < 0, smaller * ones, factor)
        size = state["step_size"] if "step_size" in state else group["lr"] * ones
        size = state["step_size"] = (size * factor).clamp(smallest, largest)
        g = state["prev"] = torch.where(agrees < 0, 0.0, g)
        return p - g.sign() * size
