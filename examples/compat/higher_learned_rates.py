"""Learned learning rates, as a script for higher: only the import is another.

    python examples/compat/higher_learned_rates.py [--iterations 60]

A small classifier is trained for a few steps on clusters of points, and a learning rate and a
momentum for each of its layers are learned so that those few steps do as well as they can. The
initial weights are not learned: each run starts from new ones.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml.compat.higher as higher  # was: import higher

CLASSES, FEATURES = 4, 6


def net() -> nn.Module:
    """Two layers, whose parameters are the optimizer's two groups."""
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def clusters(generator: torch.Generator, examples: int = 40) -> tuple[Tensor, Tensor]:
    """Points ``[examples, FEATURES]`` around a centre for each class, and their classes."""
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (examples,), generator=generator)
    noise = 0.5 * torch.randn(examples, FEATURES, generator=generator)
    return centres[labels] + noise, labels


def main(
    iterations: int = 60,
    inner_steps: int = 5,
    initial_lr: float = 0.02,
    initial_momentum: float = 0.5,
    meta_lr: float = 0.02,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[list[float], list[float], list[float]]:
    """The loss after the inner steps for every iteration, the learned rates, the momenta."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rates = [torch.tensor(initial_lr, dtype=dtype, requires_grad=True) for _ in range(2)]
    momenta = [torch.tensor(initial_momentum, dtype=dtype, requires_grad=True) for _ in range(2)]
    outer = torch.optim.Adam([*rates, *momenta], lr=meta_lr)
    history = []
    for _ in range(iterations):
        model = net().to(dtype)
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
        inner = torch.optim.SGD(groups, lr=initial_lr, momentum=initial_momentum)
        x, y = clusters(generator)
        x = x.to(dtype)
        # Nothing is learned about the initial weights, so copies of them are what is wanted.
        with higher.innerloop_ctx(
            model, inner, override={"lr": rates, "momentum": momenta}
        ) as (fnet, diffopt):  # fmt: skip
            for _ in range(inner_steps):
                diffopt.step(F.cross_entropy(fnet(x), y))
            loss = F.cross_entropy(fnet(x), y)
        outer.zero_grad()
        loss.backward()
        outer.step()
        history.append(loss.item())
    # The optimizer of torch.optim with what was learned, for training as usual:
    higher.optim.apply_trainable_opt_params(inner, {"lr": rates, "momentum": momenta})
    learned = inner.param_groups
    return history, [g["lr"] for g in learned], [g["momentum"] for g in learned]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=60)
    losses, learned_rates, learned_momenta = main(parser.parse_args().iterations)
    print(f"loss after five steps: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    print("learning rates:", ", ".join(f"{rate:.3f}" for rate in learned_rates))
    print("momenta:", ", ".join(f"{momentum:.3f}" for momentum in learned_momenta))
