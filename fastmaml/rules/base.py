"""The contract of a rule: how parameters move in the inner loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmaml import ops

Tensors = dict[str, Tensor]
"""Tensors by parameter name."""

State = Any
"""A tree of tensors that a rule carries from one inner step to the next."""


@dataclass(frozen=True)
class Rule(ABC):
    """A pure pair (`init`, `update`), differentiable in every tensor that it is given.

    Tensors of parameters, gradients and state are ``[tasks, *shape]``; learned rates have no
    ``tasks`` dimension, as all tasks share them. Rules compose with `chain`.

    Attributes:
        moves: whether `update` returns the step to add to the parameters (SGD, Adam, ...) or a
            gradient for the next rule of a chain (clipping, weight decay).
        linear: whether the update and the new state are jointly linear in gradient, state and
            parameters, with coefficients that depend on the rates alone. `MixedMode` then needs
            one gradient a step less; a wrong True gives wrong meta-gradients there.
        by_row: whether rows of a parameter without a gradient change nothing for others. An
            embedding then adapts in the rows that a task looks up; a wrong True gives wrong ones.
        feeds_rows: whether a row without a gradient gets one (weight decay).
        mixes_rows: whether what a row gets depends on the gradients of all (their norm). The rows
            of a chain of both are not alone any more.
        proximal: λ where the rule stands still just where ∇L(θ) + λ·(θ − θ_0) is zero, with θ_0
            where it began; None where it stands still elsewhere, or that is not known.
            `Implicit` goes by it; a wrong number gives wrong meta-gradients there.
    """

    moves: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    by_row: ClassVar[bool] = False
    feeds_rows: ClassVar[bool] = False
    mixes_rows: ClassVar[bool] = False
    proximal: ClassVar[float | None] = None

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """The initial values of what this rule learns: meta-parameters by name (none by default).

        Args:
            parameters: the adapted parameters, ``[*shape]``.
            steps: the number of inner steps of the meta-step.
        """
        return {}

    def init(self, parameters: Tensors) -> State:
        """The state before the first step (none by default). It must not depend on the values."""
        return ()

    @abstractmethod
    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """The update and the new state at inner step `step` (0, 1, ...)."""

    def scaling(
        self, step: int, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, float] | None:
        """Where the update is ``factor·rate∘gradient``: the rates (or {} for 1) and the factor.

        Such a rule moves all parameters of all tasks in one call of `ops.inner_update`. None, as by
        default, for any other.
        """
        return None

    def move(
        self,
        step: int,
        gradients: Tensors,
        state: State,
        parameters: Tensors,
        rates: Tensors,
        backend: str,
    ) -> tuple[Tensors, State]:
        """The parameters after inner step `step`, and the new state.

        Args:
            backend: of `fastmaml.ops`; "reference" adds `update` to the parameters.
        """
        scaling = None if backend == "reference" else self.scaling(step, parameters, rates)
        if scaling is not None and ops.covers("inner_update", backend, parameters.values()):
            rate, factor = scaling
            moved = ops.inner_update(
                list(parameters.values()),
                [gradients[name] for name in parameters],
                [rate[name] for name in parameters] if rate else None,
                scale=factor,
                backend=backend,
            )
            return dict(zip(parameters, moved, strict=True)), state
        updates, state = self.update(step, gradients, state, parameters, rates)
        return {name: p + updates[name] for name, p in parameters.items()}, state


@dataclass(frozen=True)
class WithRate(Rule):
    """A rule that moves with one learning rate for all parameters.

    An `lr` that is a scalar `nn.Parameter` is learned: it is then among ``maml.parameters()``.

    Raises:
        ValueError: `lr` is negative, not finite, or a tensor that is no scalar `nn.Parameter`.
    """

    lr: float | Tensor

    def __post_init__(self) -> None:
        require_rate(type(self).__name__, self.lr)

    def rates(self, parameters: Mapping[str, Tensor], steps: int) -> Tensors:
        """The learning rate, where it is a tensor that requires a gradient."""
        if isinstance(self.lr, Tensor) and self.lr.requires_grad:
            return {"lr": self.lr}
        return {}

    def rate(self, rates: Tensors) -> float | Tensor:
        """The learning rate of this meta-step."""
        return rates.get("lr", self.lr)

    def factor(self, parameters: Tensors, rates: Tensors) -> tuple[Tensors, float]:
        """−lr as `scaling` gives it."""
        lr = self.rate(rates)
        if isinstance(lr, Tensor):
            return dict.fromkeys(parameters, lr), -1.0
        return {}, -lr


def require_rate(rule: str, lr: float | Tensor) -> None:
    """Raise ValueError unless `lr` is a finite number of at least 0, or such a learned scalar."""
    if not isinstance(lr, Tensor):
        require_at_least_zero(rule, "lr", lr)
        return
    if lr.ndim != 0:
        raise ValueError(
            f"{rule}(lr=tensor of shape {list(lr.shape)}): a learning rate is one number, a tensor "
            "of shape []. For a rate per element use rules.MetaSGD, per layer and step rules.LSLR."
        )
    if not isinstance(lr, nn.Parameter):
        raise ValueError(
            f"{rule}(lr=tensor): to learn the rate give nn.Parameter(torch.tensor(0.1)), which is "
            "then among maml.parameters(); else give a float. Another tensor would be copied, and "
            "what it was computed from would never learn."
        )
    require_at_least_zero(rule, "lr", lr.detach().item())


def require_at_least_zero(rule: str, name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number at or above zero."""
    if not (isinstance(value, int | float) and 0 <= value < float("inf")):
        raise ValueError(f"{rule}({name}={value!r}): give a finite number of at least 0.")


def zeros_like(parameters: Tensors) -> Tensors:
    """A zero tensor like each of `parameters`, by name."""
    return {name: torch.zeros_like(p) for name, p in parameters.items()}


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with derivative 0 instead of infinity at 0.

    A gradient that is exactly zero (a dead unit, an unused row) would otherwise give NaN: the
    chain rule multiplies the infinite slope by the zero slope of the square inside.

    Args:
        x: of any shape, at least 0.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)
