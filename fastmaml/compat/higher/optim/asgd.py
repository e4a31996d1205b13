"""`torch.optim.ASGD`, differentiable."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from fastmaml.compat.higher.optim.elementwise import Elementwise, Group, State
from fastmaml.compat.higher.optim.numerics import Coefficient, counted, is_on, plus


@final
class DifferentiableASGD(Elementwise):
    """Averaged gradient descent (Polyak and Juditsky, 1992); the average is in the state's ``ax``.

    The step size ``eta`` of a step is computed at the end of the one before, so that a learned `lr`
    enters at the first step by its value and later through the decay.
    """

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        lr: Coefficient = group["lr"]
        lambd: Coefficient = group["lambd"]
        if is_on(group["weight_decay"]):
            g = plus(g, group["weight_decay"], p)
        step = counted(state)
        eta = _as_torch_keeps(state.get("eta", lr))
        mu = float(state.get("mu", 1.0))
        p = plus(p * (1 - lambd * eta), -eta, g)
        state["ax"] = p if mu == 1 or "ax" not in state else plus(state["ax"], mu, p - state["ax"])
        state["eta"] = _as_torch_keeps(lr / (1 + lambd * lr * step) ** group["alpha"])
        state["mu"] = _as_torch_keeps(1 / max(1.0, step - float(group["t0"])))
        return p


def _as_torch_keeps(x: Coefficient) -> Coefficient:
    """Torch keeps it in a tensor of the default dtype, and so rounds it, unless it is learned."""
    learned = isinstance(x, Tensor) and x.requires_grad
    return x if learned else float(torch.tensor(float(x)))
