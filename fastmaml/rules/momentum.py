"""Gradient descent with momentum, classical or Nesterov's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fastmaml import ops
from fastmaml.rules.base import State, Tensors, WithRate, zeros_like


@final
@dataclass(frozen=True)
class Momentum(WithRate):
    """m' = momentum·m + g;  θ' = θ − lr·m', or θ − lr·(g + momentum·m') with Nesterov.

    The convention is that of `torch.optim.SGD` without dampening. Carries one copy of the adapted
    parameters a task.

    Args:
        lr: the inner learning rate; a scalar `nn.Parameter` is meta-learned.
        momentum: in [0, 1).
        nesterov: look ahead (Sutskever et al., 2013).

    Raises:
        ValueError: a rate as of `SGD`, or a momentum out of range.
    """

    momentum: float = 0.9
    nesterov: bool = False
    linear: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    proximal: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Momentum(momentum={self.momentum!r}): give a number in [0, 1).")

    def init(self, parameters: Tensors) -> State:
        """The velocities before the first step: zeros like the parameters."""
        return zeros_like(parameters)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The step along the new velocity, and that velocity."""
        lr = self.rate(rates)
        velocity = {name: self.momentum * state[name] + g for name, g in gradients.items()}
        if self.nesterov:
            along = {name: g + self.momentum * velocity[name] for name, g in gradients.items()}
        else:
            along = velocity
        return {name: -lr * d for name, d in along.items()}, velocity

    def move(
        self,
        step: int,
        gradients: Tensors,
        state: State,
        parameters: Tensors,
        rates: Tensors,
        backend: str,
    ) -> tuple[Tensors, State]:
        """As every rule's, with the op `inner_momentum`."""
        given = parameters.values()
        if backend == "reference" or not ops.covers("inner_momentum", backend, given):
            return super().move(step, gradients, state, parameters, rates, "reference")
        rate, factor = self.factor(parameters, rates)
        moved, velocity = ops.inner_momentum(
            list(given),
            [gradients[name] for name in parameters],
            [state[name] for name in parameters],
            list(rate.values()) or None,
            scale=factor,
            momentum=self.momentum,
            nesterov=self.nesterov,
            backend=backend,
        )
        named = (dict(zip(parameters, xs, strict=True)) for xs in (moved, velocity))
        return next(named), next(named)
