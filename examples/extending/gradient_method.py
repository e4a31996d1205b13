"""A gradient method of your own: how the inner loop is differentiated.

See docs/extending/gradient_method.md.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients.base import (
    GradientMethod,
    Loop,
    Meta,
    MetaGradient,
    Query,
    leaves_of,
    pull_back,
)  # fmt: skip


@dataclass(frozen=True)
class ConstantGradients(GradientMethod):
    """Approximate: first order. The same as `gradients.FirstOrder`, to compare with it."""

    exact: ClassVar[bool] = False
    one_graph: ClassVar[bool] = True  # backpropagation through one recorded loop, in which ...

    def differentiates(self, step: int, steps: int) -> bool:
        """... no step's inner gradient is differentiated."""
        return False

    def meta_gradient(self, loop: Loop, meta: Meta) -> tuple[MetaGradient, list[Query]]:
        """Record the loop with constant inner gradients, then go back once."""
        with torch.enable_grad():
            meta = leaves_of(meta)
            carry, queries = loop.start(meta), []
            for step in range(loop.steps + 1):
                if loop.observed(step):  # the last is; others in MAML++'s multi-step loss
                    queries.append(loop.query(step, carry.parameters, meta.shared))
                if step < loop.steps:
                    carry = loop.step(step, carry, meta, create_graph=False)
            values = [query.value for query in queries]
            gradient = pull_back(values, [torch.ones_like(x) for x in values], meta)
        return MetaGradient(*gradient), [query.detach() for query in queries]


def main() -> None:
    """Compare it with the built-in twin, and with the exact meta-gradient."""
    torch.manual_seed(0)
    batch = fm.episodes.digits("train", ways=5, shots=5, tasks=4).sample()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))
    found = {}
    for method in (fm.gradients.Unrolled(), fm.gradients.FirstOrder(), ConstantGradients()):
        maml = fm.MAML(model, lr=0.3, steps=3, loss=F.cross_entropy, gradient=method)
        gradient = torch.autograd.grad(maml(batch).loss, list(maml.parameters()))
        found[method] = torch.cat([g.flatten() for g in gradient])
        exact = found[fm.gradients.Unrolled()]
        error = (found[method] - exact).norm() / exact.norm()
        print(f"{method}: {error:.2%} from the exact meta-gradient")
    twin = found[fm.gradients.FirstOrder()]
    print("as FirstOrder, bit for bit:", torch.equal(found[ConstantGradients()], twin))


if __name__ == "__main__":
    main()
