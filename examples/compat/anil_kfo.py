"""Meta-KFO on a head: its gradient passes through a learned Kronecker product, task by task.

    python examples/compat/anil_kfo.py --root FOLDER --iterations 1000 --hidden-size 64

`--root` is the folder of CIFAR-FS; without it the images are made up, of 16x16.
"""

import random

import synthetic
import torch
import tyro
from torch import nn

import fastmaml.compat.learn2learn as l2l


def main(
    ways: int = 5,
    shots: int = 2,
    meta_lr: float = 0.002,
    fast_lr: float = 0.3,
    meta_batch_size: int = 3,
    adaptation_steps: int = 3,
    hidden_size: int = 8,
    iterations: int = 3,
    seed: int = 42,
    root: str | None = None,
    double: bool = False,
) -> list[float]:
    """Meta-train features, head and transform; the mean query loss of every iteration."""
    random.seed(seed)
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    if root is None:
        tasksets = synthetic.tasksets(ways, 2 * shots, (3, 16, 16))
        embedding_size = hidden_size
    else:
        tasksets = l2l.vision.benchmarks.get_tasksets(
            "cifarfs", ways, 2 * shots, ways, 2 * shots, root=root
        )
        embedding_size = 4 * hidden_size
    features = l2l.vision.models.CNN4Backbone(hidden_size=hidden_size).to(dtype)
    head = l2l.algorithms.GBML(
        nn.Linear(embedding_size, ways),
        transform=l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear),
        lr=fast_lr,
        adapt_transform=False,
    ).to(dtype)
    opt = torch.optim.Adam([*features.parameters(), *head.parameters()], meta_lr)
    loss = nn.CrossEntropyLoss()

    errors = []
    for iteration in range(iterations):
        opt.zero_grad()
        meta_train_error = 0.0
        for _ in range(meta_batch_size):
            data, labels = tasksets.train.sample()
            embedded = features(data.to(dtype))
            learner = head.clone()
            for _ in range(adaptation_steps):
                learner.adapt(loss(learner(embedded[::2]), labels[::2]))
            error = loss(learner(embedded[1::2]), labels[1::2]) / meta_batch_size
            error.backward()
            meta_train_error += error.item()
        print(f"{iteration:5}  loss {meta_train_error:.4f}")
        errors.append(meta_train_error)
        opt.step()
    return errors


if __name__ == "__main__":
    tyro.cli(main)
