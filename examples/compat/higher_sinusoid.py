"""MAML on sinusoids, as a script for higher: only the import is another.

    python examples/compat/higher_sinusoid.py [--iterations 200]

A task is a sine wave of random amplitude and phase: ten points to adapt on, ten to be judged on.
"""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml.compat.higher as higher  # was: import higher

Task = tuple[Tensor, Tensor, Tensor, Tensor]


def net(width: int = 40) -> nn.Module:
    """Two hidden layers, from one number to one number."""
    layers = [nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def task(generator: torch.Generator, shots: int = 10) -> Task:
    """Support inputs and targets, query inputs and targets, each ``[shots, 1]``."""
    amplitude = 0.1 + 4.9 * torch.rand((), generator=generator)
    phase = math.pi * torch.rand((), generator=generator)
    x = 10 * torch.rand(2, shots, 1, generator=generator) - 5
    y = amplitude * torch.sin(x - phase)
    return x[0], y[0], x[1], y[1]


def main(
    iterations: int = 200,
    tasks: int = 8,
    inner_steps: int = 1,
    inner_lr: float = 0.01,
    meta_lr: float = 2e-3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[float]:
    """The mean query loss after adaptation, for every iteration."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = net().to(dtype)
    inner = torch.optim.SGD(model.parameters(), lr=inner_lr)
    outer = torch.optim.Adam(model.parameters(), lr=meta_lr)
    history = []
    for _ in range(iterations):
        outer.zero_grad()
        total = 0.0
        for _ in range(tasks):
            xs, ys, xq, yq = (x.to(dtype) for x in task(generator))
            # By default the copies would be detached, and the model would never learn.
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fnet, diffopt):
                for _ in range(inner_steps):
                    diffopt.step(F.mse_loss(fnet(xs), ys))
                loss = F.mse_loss(fnet(xq), yq)
                (loss / tasks).backward()
            total += loss.item() / tasks
        outer.step()
        history.append(total)
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=200)
    losses = main(parser.parse_args().iterations)
    for i in range(0, len(losses), 20):
        chunk = losses[i : i + 20]
        print(f"iterations {i:4} to {i + len(chunk) - 1:4}: loss {sum(chunk) / len(chunk):.3f}")
