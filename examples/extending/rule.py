"""A rule of your own: how parameters move in the inner loop. See docs/extending/rule.md."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.rules.base import State, Tensors, WithRate, zeros_like


@dataclass(frozen=True)
class HeavyBall(WithRate):
    """m' = momentum·m + g;  θ' = θ − lr·m'. The same as `rules.Momentum`, to compare with it."""

    momentum: float = 0.9
    linear: ClassVar[bool] = True  # lr and momentum are the only factors
    by_row: ClassVar[bool] = True  # a row with no gradient and no velocity stays

    def init(self, parameters: Tensors) -> State:
        """Zero velocities ``[tasks, *shape]``."""
        return zeros_like(parameters)

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """What is added to the parameters, and the new velocity."""
        velocity = {name: self.momentum * state[name] + g for name, g in gradients.items()}
        lr = self.rate(rates)  # a number, or learned where lr is an nn.Parameter
        return {name: -lr * v for name, v in velocity.items()}, velocity


@dataclass(frozen=True)
class Normalised(WithRate):
    """θ' = θ − lr·g/√(|g|² + ε²), every parameter tensor of every task by its own norm."""

    epsilon: float = 1e-3
    by_row: ClassVar[bool] = True  # a row without a gradient stays, and adds nothing to the norm
    mixes_rows: ClassVar[bool] = True  # but all rows that have one are in it

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        """A step of length lr at most; no state."""
        lr, moves = self.rate(rates), {}
        for name, g in gradients.items():
            square = g.reshape(len(g), -1).square().sum(1) + self.epsilon**2  # [tasks]
            moves[name] = -lr * g / square.sqrt().view(-1, *[1] * (g.ndim - 1))
        return moves, state


def main() -> None:
    """Compare the first with the built-in rule; meta-train with the second and a learned rate."""
    torch.manual_seed(0)
    episodes = fm.episodes.digits("train", ways=5, shots=5, tasks=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))
    batch = episodes.sample()
    for rule in (fm.rules.Momentum(0.1), HeavyBall(0.1)):
        maml = fm.MAML(model, rule=rule, steps=3, loss=F.cross_entropy)
        gradient = torch.autograd.grad(maml(batch).loss, list(maml.parameters()))
        print(f"{rule}: |meta-gradient| = {torch.cat([g.flatten() for g in gradient]).norm():.6f}")

    rule = Normalised(nn.Parameter(torch.tensor(0.05)))  # its rate is learned
    maml = fm.MAML(model, rule=rule, steps=3, loss=F.cross_entropy)
    print("a plain loop with the same rule agrees:", fm.verify(maml, batch).agrees)
    optimizer = torch.optim.Adam(maml.parameters(), 3e-3)
    for _ in range(60):
        out = maml(episodes.sample())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    print(f"after 60 iterations: accuracy {out.accuracy:.0%}, learned lr {rule.lr.item():.3f}")


if __name__ == "__main__":
    main()
