"""Meta-Curvature: gradients pass through learned matrices, task by task.

    python examples/compat/metacurvature_fc100.py --root FOLDER --iterations 1000 --hidden-size 64

`--root` is the folder of FC100_*.pickle; without it the images are made up, of 16x16.
"""

import random

import synthetic
import torch
import tyro
from torch import nn

import fastmaml.compat.learn2learn as l2l


def main(
    ways: int = 5,
    shots: int = 1,
    meta_lr: float = 0.003,
    fast_lr: float = 0.2,
    meta_batch_size: int = 2,
    adaptation_steps: int = 3,
    hidden_size: int = 4,
    iterations: int = 3,
    seed: int = 42,
    root: str | None = None,
    double: bool = False,
) -> list[float]:
    """Meta-train parameters and matrices; the mean query loss of every iteration."""
    random.seed(seed)
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    if root is None:
        tasksets = synthetic.tasksets(ways, 2 * shots, (3, 16, 16))
        embedding_size = hidden_size
    else:
        tasksets = l2l.vision.benchmarks.get_tasksets(
            "fc100", ways, 2 * shots, ways, 2 * shots, root=root
        )
        embedding_size = 4 * hidden_size
    model = l2l.vision.models.CNN4(ways, hidden_size=hidden_size, embedding_size=embedding_size)
    gbml = l2l.algorithms.GBML(
        model.to(dtype),
        transform=l2l.optim.MetaCurvatureTransform,
        lr=fast_lr,
        adapt_transform=False,
    )
    opt = torch.optim.Adam(gbml.parameters(), meta_lr)
    loss = nn.CrossEntropyLoss()

    errors = []
    for iteration in range(iterations):
        opt.zero_grad()
        meta_train_error = 0.0
        for _ in range(meta_batch_size):
            data, labels = tasksets.train.sample()
            data = data.to(dtype)
            learner = gbml.clone()
            for _ in range(adaptation_steps):
                learner.adapt(loss(learner(data[::2]), labels[::2]))
            error = loss(learner(data[1::2]), labels[1::2]) / meta_batch_size
            error.backward()
            meta_train_error += error.item()
        print(f"{iteration:5}  loss {meta_train_error:.4f}")
        errors.append(meta_train_error)
        opt.step()
    return errors


if __name__ == "__main__":
    tyro.cli(main)
