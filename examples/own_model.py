"""Meta-learn a model of your own on data of your own, with the outer loop in your hands.

    python examples/own_model.py [--iterations 200]

The data are the handwritten digits that come with fastmaml, as plain tensors; put yours in their
place. Digits 0 to 3 (upright, and turned by 90 degrees) are for training, 7 to 9 for testing.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import fastmaml as fm


class Net(nn.Module):
    """Any module will do: here two convolutions with group normalisation."""

    def __init__(self, ways: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(32 * 4, ways)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``[examples, 1, 8, 8]`` to logits ``[examples, ways]``."""
        return self.head(self.body(x).flatten(1))


def main() -> None:
    """Meta-train, then adapt to digits that were never seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=200)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    train = fm.episodes.digits("train", ways=5, shots=5, tasks=8)
    test = fm.episodes.digits("test", ways=5, shots=5, tasks=200)
    maml = fm.MAML(Net(5), lr=0.2, steps=3, loss=F.cross_entropy)
    print(maml.explain(train.sample()))

    optimizer = torch.optim.Adam(maml.parameters(), 2e-3)
    for iteration, episodes in zip(range(options.iterations), train, strict=False):
        out = maml(episodes)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if iteration % 50 == 0:
            print(f"{iteration:4}  loss {out.loss:.3f}  accuracy {out.accuracy:.1%}")

    for steps, out in enumerate(maml.evaluate_each_step(test.sample())):
        print(f"unseen digits after {steps} steps: {out.accuracy:.1%}")

    task = test.sample()[0]  # a learner for one new task is an ordinary module
    learner = maml.adapt_to(fm.Batch(task.support.inputs[0], task.support.targets[0]))
    print(learner(task.query.inputs[0]).argmax(1).tolist(), task.query.targets[0].tolist())


if __name__ == "__main__":
    main()
