"""Heads of your own: how every task's last layer begins. See docs/extending/head.md."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.heads import Head


@dataclass(frozen=True)
class Signs(Head):
    """Every weight is +scale or -scale, drawn anew for each task; biases are zero."""

    scale: float = 0.1

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Dropout draws for a task what can be drawn again, and for all tasks at once."""
        signs = F.dropout(torch.ones_like(weight), 0.5, training=True) - 1  # of 0 and 2
        return self.scale * signs, weight.new_zeros(len(weight))


@dataclass(frozen=True)
class LeastSquares(Head):
    """Ridge regression of one-hot labels on the support features (Bertinetto et al., 2019).

    With X the features and a column of ones, Y the labels: W = (XᵀX + strength·I)⁻¹ XᵀY, by the
    smaller system of the examples: W = Xᵀ (XXᵀ + strength·I)⁻¹ Y.
    """

    strength: float = 1.0
    scale: float = 5.0
    needs_features: ClassVar[bool] = True

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """The solution, times `scale`, as logits are no probabilities."""
        classes = torch.arange(len(weight), device=weight.device)  # `F.one_hot` reads a value
        labels = (targets.unsqueeze(-1) == classes).to(features.dtype)  # [examples, classes]
        x = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        square = x @ x.T + self.strength * torch.eye(len(x), dtype=x.dtype, device=x.device)
        solved = self.scale * x.T @ torch.linalg.solve(square, labels)
        return solved[:-1].T, solved[-1]


def main() -> None:
    """Meta-train with each head in turn; the test classes are others than the training's."""
    train = fm.episodes.digits("train", ways=5, shots=5, tasks=8, seed=0)
    test = fm.episodes.digits("test", ways=5, shots=5, tasks=100, seed=0).sample()
    for head in (fm.heads.Zero(), Signs(), LeastSquares(), fm.heads.Prototype()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))
        maml = fm.MAML(model, lr=0.1, steps=3, loss=F.cross_entropy, head=head)
        optimizer = torch.optim.Adam(maml.parameters(), 3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            maml(train.sample()).loss.backward()
            optimizer.step()
        before, *_, after = maml.evaluate_each_step(test)
        print(f"{head}: {before.accuracy:.0%} without inner steps, {after.accuracy:.0%} after 3")


if __name__ == "__main__":
    main()
