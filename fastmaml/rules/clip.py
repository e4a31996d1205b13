"""Gradient clipping inside the inner loop, by the task's own norm or by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from fastmaml.rules.base import Rule, State, Tensors, require_at_least_zero, safe_sqrt


@final
@dataclass(frozen=True)
class ClipNorm(Rule):
    """Scale a task's gradient so that its norm over all adapted parameters is at most `max_norm`.

    The scale is min(1, max_norm / (norm + 1e-6)), as in `torch.nn.utils.clip_grad_norm_`, and it is
    differentiated too. Each task is clipped by its own norm.

    Args:
        max_norm: the largest norm that passes unchanged.

    Raises:
        ValueError: a norm that is negative or not finite.
    """

    max_norm: float
    moves: ClassVar[bool] = False
    by_row: ClassVar[bool] = True
    proximal: ClassVar[float | None] = 0.0
    mixes_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least_zero("ClipNorm", "max_norm", self.max_norm)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The scaled gradient, and no state."""
        squares = [_squares(g).reshape(len(g), -1).sum(1) for g in gradients.values()]
        norm = safe_sqrt(sum(squares[1:], squares[0]))
        scale = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        return {
            name: scale.view(-1, *[1] * (g.ndim - 1)) * g for name, g in gradients.items()
        }, state


def _squares(g: Tensor) -> Tensor:
    """The squared magnitude of every element."""
    return g.real.square() + g.imag.square() if g.is_complex() else g.square()


@final
@dataclass(frozen=True)
class ClipValue(Rule):
    """Clamp every element of the gradient to [−limit, limit].

    Args:
        limit: the largest magnitude that passes unchanged.

    Raises:
        ValueError: a limit that is negative or not finite; when used for a complex parameter,
            whose elements have no order.
    """

    limit: float
    moves: ClassVar[bool] = False
    by_row: ClassVar[bool] = True
    proximal: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        require_at_least_zero("ClipValue", "limit", self.limit)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The clamped gradient, and no state."""
        for name, g in gradients.items():
            if g.is_complex():
                raise ValueError(
                    f"ClipValue cannot clamp the gradient of {name!r}, which is {g.dtype}: complex "
                    "numbers have no order. Use ClipNorm, which scales by the magnitude."
                )
        return {n: g.clamp(-self.limit, self.limit) for n, g in gradients.items()}, state
