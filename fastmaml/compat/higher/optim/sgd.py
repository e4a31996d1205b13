"""`torch.optim.SGD`, differentiable."""

from __future__ import annotations

from typing import final

from torch import Tensor

from fastmaml.compat.higher.optim.elementwise import Elementwise, Group, State
from fastmaml.compat.higher.optim.numerics import is_on, plus


@final
class DifferentiableSGD(Elementwise):
    """Gradient descent with momentum, dampening, Nesterov's variant and weight decay.

    A learned momentum that stands at zero still keeps its buffer, so that it has a gradient.
    """

    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        if is_on(group["weight_decay"]):
            g = plus(g, group["weight_decay"], p)
        momentum = group["momentum"]
        if is_on(momentum):
            buffer = state.get("momentum_buffer")
            buffer = g if buffer is None else plus(momentum * buffer, 1 - group["dampening"], g)
            state["momentum_buffer"] = buffer
            g = plus(g, momentum, buffer) if group["nesterov"] else buffer
        return plus(p, -group["lr"], g)
