"""Implicit differentiation: from where the inner loop arrives, whatever way it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmaml.gradients.adjoint import query_back, start_back
from fastmaml.gradients.base import (
    Carry,
    GradientMethod,
    Loop,
    Meta,
    MetaGradient,
    Query,
    add,
    detached,
    leaves_of,
)
from fastmaml.gradients.conjugate import Solution, conjugate_gradient, inner
from fastmaml.rules.base import Rule, Tensors


class ImplicitError(NamedTuple):
    """How far the meta-gradient of `Implicit` can be trusted, for each task ``[tasks]``."""

    stationarity: Tensor
    """|∇L(θ_K) + λ(θ_K − θ_0)| / λ|θ_K − θ_0|: 0 at the minimum, where the formula holds."""
    residual: Tensor
    """Of the linear system, relative."""
    indefinite: Tensor
    """bool: whether H + λI is not positive along a direction, so that θ_K is no minimum."""


@final
@dataclass(frozen=True)
class Implicit(GradientMethod):
    """Approximate: the derivative of the minimum that the inner loop approaches (iMAML).

    The inner loop has to minimise L(θ) + λ/2·‖θ − θ_0‖², so its rule begins with `rules.Proximal`:
    ``rule=chain(Proximal(2.0), SGD(0.1))``. Each task's meta-gradient is then
    (I + H/λ)⁻¹ ∇L(θ_K; query), with H the Hessian of the support loss at θ_K, by conjugate
    gradients (Rajeswaran et al., 2019, eq. 6). Parameters that the inner loop leaves alone get
    theirs through the minimum, too. The error vanishes as inner steps and iterations grow, and has
    two parts: θ_K is not the minimum, and the linear system is not solved (`error` measures both).
    Where H/λ + I is not positive along a direction that is met (λ is too small, or θ_K no minimum),
    that task's iterations stop there, before any at the query gradient itself.

    Time: 1 gradient a step, and then 2 and `iterations` products with the Hessian, of about 2
    gradients each. Memory: one second-order graph and five copies of what adapts, however many the
    steps. Not for few steps, which arrive nowhere (take `Unrolled`), learned rates, on which a
    minimum does not depend, or dropout, whose every step has a minimum of its own.

    The paper's setting: 5 iterations; Omniglot λ = 2, 16 steps of 0.1 or 25 for 20 ways;
    miniImageNet λ = 0.5.

    Args:
        iterations: of conjugate gradients.
        damping: added to I, for a system that is solved sooner and leans to the query gradient;
            the authors' code has 1.
        tolerance: the relative residual at which a task is solved.

    Raises:
        ValueError: an argument out of range; a rule that is not pulled to where the task began, or
            that stands still elsewhere than at the minimum (weight decay), or learns; a support
            set, or a row of the model (`models.PerStep`), for each inner step; `step_weights` of
            more than the last step.
    """

    iterations: int = 5
    damping: float = 0.0
    tolerance: float = 1e-10
    exact: ClassVar[bool] = False
    steps_once: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.iterations) is not int or self.iterations < 1:
            raise ValueError(
                f"Implicit(iterations={self.iterations!r}): give a positive whole number."
            )
        for name in ("damping", "tolerance"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise ValueError(f"Implicit({name}={value!r}): give a finite number of at least 0.")

    def differentiates(self, step: int, steps: int) -> bool:
        """The Hessian is that at the end."""
        return step == steps - 1

    def held_steps(self, steps: int) -> int:
        """The graph at the end, however many the steps."""
        return min(steps, 1)

    def unfit(self, rule: Rule, learns: bool) -> str:
        """Rules that learn, and those that do not stop at the proximal minimum."""
        if learns:
            return (
                "gradient=Implicit(...) gives nothing to what a rule learns, as the minimum does "
                "not depend on the way to it: take a rule without learned rates, or "
                "gradient=Unrolled()."
            )
        if not rule.proximal:
            return (
                "gradient=Implicit(...) differentiates the minimum of the loss with a pull to "
                f"where the task began, and rule={rule} does not stop there: give "
                "rule=chain(Proximal(2.0), SGD(lr)), with Proximal first and without weight decay "
                "(--proximal 2 on the command line)."
            )
        return ""

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """Adapt without graphs, solve one linear system a task, and go back from there."""
        self._check(loop, meta)
        meta = detached(meta)
        with torch.no_grad():
            carry = self._adapted(loop, meta)
            cotangent, gradient, query = query_back(loop, loop.steps, carry, meta)
            if loop.steps:
                cotangent, shared = self._through_the_minimum(loop, carry, meta, cotangent)[:2]
                gradient = add(gradient, gradient._replace(shared=shared))
            gradient = add(gradient, start_back(loop, meta, cotangent))
        return gradient, [query]

    def error(self, loop: Loop, meta: Meta) -> ImplicitError:
        """How near to the minimum the inner loop comes, and how well the system is solved.

        Args:
            loop: at least one inner step.
            meta: as for `meta_gradient`.
        """
        self._check(loop, meta)
        meta, strength = detached(meta), _strength(loop)
        with torch.no_grad():
            start, carry = loop.start(meta).parameters, self._adapted(loop, meta)
            cotangent = query_back(loop, loop.steps, carry, meta)[0]
            slope = loop.gradient(loop.steps - 1, carry, meta, create_graph=False)
            pull = {n: strength * (p - start[n]) for n, p in carry.parameters.items()}
            sums = {n: g + pull[n] for n, g in slope.items()}
            solution = self._through_the_minimum(loop, carry, meta, cotangent)[2]
            stationarity = (inner(sums, sums) / inner(pull, pull)).sqrt()
        return ImplicitError(stationarity, solution.residual, solution.indefinite)

    def _check(self, loop: Loop, meta: Meta) -> None:
        """Raise ValueError for a loop whose meta-gradient this is not."""
        why = self.unfit(loop.rule, bool(meta.rates))
        if not why and len(loop.sets) > 1:
            why = (
                "gradient=Implicit(...) differentiates the minimum of one support loss, and here "
                "each inner step has a support set of its own: give one, or gradient=Unrolled()."
            )
        if not why and loop.changing:
            why = (
                "gradient=Implicit(...) differentiates the minimum of one support loss, and a "
                "model with rows for each inner step (models.PerStep) has another loss at each: "
                "take a model without, or gradient=Unrolled()."
            )
        if not why and any(loop.observed(step) for step in range(1, loop.steps)):
            why = (
                "gradient=Implicit(...) differentiates the query loss after the last inner step, "
                "and step_weights count earlier ones, too: leave step_weights (multi_step_until) "
                "out, or take gradient=Unrolled()."
            )
        if why:
            raise ValueError(why)

    def _adapted(self, loop: Loop, meta: Meta) -> Carry:
        """What the inner loop arrives at."""
        carry = loop.start(meta)
        for step in range(loop.steps):
            carry = loop.step(step, carry, meta, create_graph=False)
        return carry

    def _through_the_minimum(
        self, loop: Loop, carry: Carry, meta: Meta, cotangent: Any
    ) -> tuple[Any, dict[str, Tensor | None], Solution]:
        """The cotangent of where the task began, that of what all share, and how it was solved."""
        strength = _strength(loop)
        with torch.enable_grad():
            carry, meta = leaves_of(carry), leaves_of(meta)
            slope = loop.gradient(loop.steps - 1, carry, meta, create_graph=True)
            b = {
                n: torch.zeros_like(p) if (v := cotangent.parameters[n]) is None else v
                for n, p in carry.parameters.items()
            }

            def apply(along: Tensors) -> Tensors:
                product = _product(slope, along, carry.parameters)
                return {
                    n: (1 + self.damping) * v + (0 if (hv := product[n]) is None else hv / strength)
                    for n, v in along.items()
                }

            solution = conjugate_gradient(apply, b, self.iterations, self.tolerance)
            back = {n: -x / strength for n, x in solution.x.items()}
            shared = _product(slope, back, meta.shared)
        nothing = tree_map(lambda _: None, carry.state)
        return Carry(solution.x, nothing), shared, solution


def _strength(loop: Loop) -> float:
    """λ; `unfit` has seen that there is one."""
    strength = loop.rule.proximal
    assert strength
    return strength


def _product(slope: Tensors, along: Tensors, by: Tensors) -> dict[str, Tensor | None]:
    """(∂slope/∂by)ᵀ·along; the graph stays."""
    pairs = [(g, along[n]) for n, g in slope.items() if g.requires_grad]
    if not pairs or not by:
        return dict.fromkeys(by)
    outputs, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(
        outputs, list(by.values()), cotangents, retain_graph=True, allow_unused=True
    )
    return dict(zip(by, found, strict=True))
