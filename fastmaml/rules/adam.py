"""Adam and AdamW as inner-loop rules, differentiable everywhere, also at a zero gradient."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, final

import torch
from torch import Tensor

from fastmaml.rules.base import (
    State,
    Tensors,
    WithRate,
    require_at_least_zero,
    safe_sqrt,
    zeros_like,
)


@dataclass(frozen=True)
class _Adam(WithRate):
    """What Adam and AdamW share: the moments and the step that they give."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    by_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"{type(self).__name__}(betas={self.betas!r}): two numbers in [0, 1).")
        if not self.eps > 0:
            raise ValueError(f"{type(self).__name__}(eps={self.eps!r}): give a positive number.")

    def init(self, parameters: Tensors) -> State:
        """Zero first and second moments."""
        return zeros_like(parameters), zeros_like(parameters)

    def _moments(self, gradients: Tensors, state: State) -> State:
        b1, b2 = self.betas
        mean, square = state
        return (
            {n: b1 * mean[n] + (1 - b1) * g for n, g in gradients.items()},
            {n: b2 * square[n] + (1 - b2) * _square(g) for n, g in gradients.items()},
        )

    def _direction(self, step: int, mean: Tensor, square: Tensor) -> Tensor:
        """The bias-corrected m/(√v + eps)."""
        if mean.is_complex():
            parts = (self._direction(step, real(mean), real(square)) for real in (_real, _imag))
            return torch.complex(*parts)
        b1, b2 = self.betas
        corrected = square / (1 - b2 ** (step + 1))
        return mean / (1 - b1 ** (step + 1)) / (safe_sqrt(corrected) + self.eps)


def _square(g: Tensor) -> Tensor:
    """The square; of a complex number those of its two parts, side by side."""
    return torch.complex(g.real.square(), g.imag.square()) if g.is_complex() else g * g


_real, _imag = attrgetter("real"), attrgetter("imag")


@final
@dataclass(frozen=True)
class Adam(_Adam):
    """Adam (Kingma and Ba, 2015), with `torch.optim.Adam`'s convention.

    A complex parameter moves as two real ones, its real and its imaginary part, as there.

    Carries two copies of the adapted parameters a task. At a gradient of zero the derivative is
    the true one where the moments are zero too (1/eps·lr); √v contributes none there. With small
    gradients that slope is steep: a larger `eps` (1e-3) steadies second-order training.

    Args:
        lr: the inner learning rate; a scalar `nn.Parameter` is meta-learned.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.

    Raises:
        ValueError: a rate as of `SGD`, betas outside of [0, 1), or eps that is not positive.
    """

    proximal: ClassVar[float | None] = 0.0

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """−lr·m/(√v + eps), and the new moments."""
        lr = self.rate(rates)
        mean, square = self._moments(gradients, state)
        return {n: -lr * self._direction(step, mean[n], square[n]) for n in gradients}, (
            mean,
            square,
        )


@final
@dataclass(frozen=True)
class AdamW(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as `torch.optim.AdamW`.

    Args:
        lr: the inner learning rate; a scalar `nn.Parameter` is meta-learned.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: θ is also multiplied by 1 − lr·weight_decay at each step.

    Raises:
        ValueError: as of `Adam`, or a decay that is negative or not finite.
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_zero("AdamW", "weight_decay", self.weight_decay)

    @property
    def proximal(self) -> float | None:  # type: ignore[override]  # the decay decides
        """0 without decay, which draws elsewhere."""
        return None if self.weight_decay else 0.0

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """−lr·(m/(√v + eps) + weight_decay·θ), and the new moments."""
        lr = self.rate(rates)
        mean, square = self._moments(gradients, state)
        updates = {
            n: -lr * (self._direction(step, mean[n], square[n]) + self.weight_decay * parameters[n])
            for n in gradients
        }
        return updates, (mean, square)
