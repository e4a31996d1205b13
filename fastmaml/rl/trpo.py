"""Trust regions for adapted policies, without a third derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.optim import Optimizer

from fastmaml.rl.outer import Outer, mean, ratios

if TYPE_CHECKING:
    from fastmaml.rl.learner import MetaPolicy


@final
@dataclass(frozen=True, kw_only=True)
class TRPO(Outer):
    """The largest natural gradient step whose adapted policies stay near (Schulman et al., 2015).

    As in MAML's experiments. At the policy that acted, the Hessian of the mean divergence through
    the inner loop is JᵀFJ exactly, where J are the derivatives of the adapted policies'
    distributions and F is the divergence's own Hessian: J·v goes through the inner loop once, Jᵀu
    is a meta-gradient, and nothing is differentiated three times. Needs a rule that is a factor
    times the gradient (`rules.SGD`, `rules.Scheduled` of it), and that all trainable parameters
    adapt. Uses no optimizer.

    Args:
        max_kl: of the adapted policies, on the average.
        cg_steps: iterations of conjugate gradients; each costs two to three meta-gradients.
        damping: added to JᵀFJ.
        backtracks: how often the step is halved before it is given up.

    Raises:
        ValueError: a number that is not positive.
    """

    max_kl: float = 0.01
    cg_steps: int = 10
    damping: float = 1e-5
    backtracks: int = 15

    def __post_init__(self) -> None:
        for name in ("max_kl", "cg_steps", "damping", "backtracks"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a positive number.")

    def check(self, learner: MetaPolicy) -> None:
        """Every parameter that moves adapts, by a fixed factor times its gradient."""
        maml = learner.maml
        adapting = {n: p.detach() for n, p in learner.policy.named_parameters() if p.requires_grad}
        trainable = sum(p.requires_grad for p in maml.parameters())
        scaling = maml.rule.scaling(0, adapting, {})
        if maml.settings.scope != "all" or trainable != len(adapting) or not scaling or scaling[0]:
            raise ValueError(
                "TRPO differentiates through the inner loop forwards: it needs scope='all' and a "
                f"rule of fixed rates, SGD or Scheduled(SGD(...), ...), not {maml.rule} and scope="
                f"{maml.settings.scope!r}."
            )

    def loss(self, distribution: Distribution, data: Mapping[str, Any]) -> Tensor:
        """−mean(A·ratio)."""
        return -mean(ratios(distribution, data) * data["advantages"], data)

    def update(
        self, learner: MetaPolicy, batches: Sequence[Any], query: Any, optimizer: Optimizer | None
    ) -> dict[str, float]:
        """One step, or none where no shorter one is better and near enough."""
        parameters = [p for p in learner.maml.parameters() if p.requires_grad]
        out = learner.meta_step(batches, query)
        learner.check_behaviour(out.outputs["apart"])
        gradient = torch.autograd.grad(out.loss, parameters, materialize_grads=True)
        before, norm = out.loss.item(), _norm(gradient)
        with torch.no_grad():
            direction, curved = self._direction(learner, batches, query, gradient)
            start = [p.clone() for p in parameters]
            scale = (2 * self.max_kl / max(curved, 1e-20)) ** 0.5
            kl, halved, better = 0.0, 0, False
            try:
                while halved < self.backtracks and not better:
                    for p, begin, d in zip(parameters, start, direction, strict=True):
                        p.copy_(begin - scale * 0.5**halved * d)
                    now = learner.meta_step(batches, query)
                    kl = now.outputs["kl"].detach().mean().item()
                    better = now.loss.item() < before and kl <= 1.5 * self.max_kl
                    halved += not better
            finally:  # also where a step on the way fails
                if not better:
                    kl = 0.0
                    for p, begin in zip(parameters, start, strict=True):
                        p.copy_(begin)
        return {"loss": before, "gradient_norm": norm, "kl": kl, "halved": float(halved)}

    def _direction(
        self, learner: MetaPolicy, batches: Any, query: Any, gradient: Sequence[Tensor]
    ) -> tuple[list[Tensor], float]:
        """x with (JᵀFJ + damping)·x = gradient, and xᵀ(JᵀFJ + damping)·x."""
        product = learner.fisher(batches, query)

        def damped(v: Sequence[Tensor]) -> list[Tensor]:
            return [f + self.damping * x for f, x in zip(product(v), v, strict=True)]

        x = conjugate_gradients(damped, gradient, self.cg_steps)
        return x, _dot(x, damped(x))


def conjugate_gradients(
    product: Callable[[Sequence[Tensor]], list[Tensor]],
    right: Sequence[Tensor],
    steps: int,
    tolerance: float = 1e-10,
) -> list[Tensor]:
    """x with ``product(x) = right``, nearly, for a symmetric positive definite product.

    Args:
        product: of a list like `right`.
        right: tensors.
        steps: at the most.
        tolerance: stop where the squared residual is below this times that of zero.
    """
    x = [torch.zeros_like(r) for r in right]
    residual = [r.detach().clone() for r in right]
    along, size = [r.clone() for r in residual], _dot(residual, residual)
    least = tolerance * size
    for _ in range(steps):
        if size <= least:
            break
        moved = product(along)
        length = size / _dot(along, moved)
        x = [a + length * b for a, b in zip(x, along, strict=True)]
        residual = [a - length * b for a, b in zip(residual, moved, strict=True)]
        size, old = _dot(residual, residual), size
        along = [a + size / old * b for a, b in zip(residual, along, strict=True)]
    return x


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x * y).sum().double() for x, y in zip(a, b, strict=True)))


def _norm(a: Sequence[Tensor]) -> float:
    return _dot(a, a) ** 0.5
