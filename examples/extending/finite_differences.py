"""A gradient method of your own that walks back step by step, and needs no second derivative.

See docs/extending/gradient_method.md.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients.adjoint import AdjointScan
from fastmaml.gradients.base import Carry, Loop, Meta, MetaGradient, add, leaves_of, pull_back


@dataclass(frozen=True)
class CentralDifferences(AdjointScan):
    """Approximate: H·v = (∇L(θ + r·v) − ∇L(θ − r·v)) / 2r, with r = epsilon/|v|.

    The error is of the order of epsilon² + rounding/epsilon. Time: about 4 gradients a step.
    Memory: a copy of what adapts a step (`AdjointScan`), and the graph of one support pass.
    """

    epsilon: float = 1e-3
    exact: ClassVar[bool] = False

    def differentiates(self, step: int, steps: int) -> bool:
        """No second-order graph is made."""
        return False

    def step_back(
        self, loop: Loop, step: int, carry: Carry, meta: Meta, cotangent: Any
    ) -> tuple[Any, MetaGradient]:
        """The cotangent of `carry`: through the rule by autograd, through ∇L by differences."""
        gradient = loop.gradient(step, carry, meta, create_graph=False)
        with torch.enable_grad():
            given = leaves_of((carry, gradient, meta))
            after = loop.update(step, *given)
            to_carry, v, to_meta = pull_back(after, cotangent, given)
        v = {n: x if x is not None else torch.zeros_like(gradient[n]) for n, x in v.items()}
        size = torch.stack([x.square().sum() for x in v.values()]).sum().sqrt()
        r = self.epsilon / size.clamp(min=1e-30)  # of all tasks of the chunk

        def side(sign: int) -> Any:
            moved = {n: p + sign * r * v[n] for n, p in carry.parameters.items()}
            with torch.enable_grad():
                leaves = leaves_of((moved, meta.shared))
                return pull_back(loop.support_loss(step, *leaves), sign / (2 * r), leaves)

        hessian, mixed = add(side(1), side(-1))
        to_carry = to_carry._replace(parameters=add(to_carry.parameters, hessian))
        return to_carry, MetaGradient(*to_meta)._replace(shared=mixed)


def main() -> None:
    """How far it is from the exact meta-gradient, beside first order."""
    torch.manual_seed(0)
    batch = fm.episodes.digits("train", ways=5, shots=5, tasks=4).sample()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))

    def gradient(method: fm.gradients.GradientMethod) -> torch.Tensor:
        maml = fm.MAML(model, lr=0.3, steps=3, loss=F.cross_entropy, gradient=method)
        found = torch.autograd.grad(maml(batch).loss, list(maml.parameters()))
        return torch.cat([g.flatten() for g in found])

    exact = gradient(fm.gradients.Unrolled())
    for method in (fm.gradients.FirstOrder(), CentralDifferences(epsilon=0.1)):
        error = (gradient(method) - exact).norm() / exact.norm()
        print(f"{method}: {error:.4%} from the exact meta-gradient")


if __name__ == "__main__":
    main()
