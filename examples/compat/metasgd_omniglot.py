"""Meta-SGD with the convolutional network for Omniglot, task by task.

    python examples/compat/metasgd_omniglot.py --root FOLDER --iterations 1000 --hidden-size 64

`--root` is the folder of Omniglot; without it the images are made up.
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
    meta_batch_size: int = 3,
    adaptation_steps: int = 2,
    hidden_size: int = 4,
    iterations: int = 3,
    seed: int = 42,
    root: str | None = None,
    double: bool = False,
) -> list[float]:
    """Meta-train parameters and learning rates; the mean query loss of every iteration."""
    random.seed(seed)
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    if root is None:
        tasksets = synthetic.tasksets(ways, 2 * shots, (1, 28, 28))
    else:
        tasksets = l2l.vision.benchmarks.get_tasksets(
            "omniglot", ways, 2 * shots, ways, 2 * shots, root=root
        )
    model = l2l.vision.models.OmniglotCNN(ways, hidden_size=hidden_size).to(dtype)
    meta_sgd = l2l.algorithms.MetaSGD(model, lr=fast_lr)
    opt = torch.optim.Adam(meta_sgd.parameters(), meta_lr)
    loss = nn.CrossEntropyLoss()

    errors = []
    for iteration in range(iterations):
        meta_train_error = torch.zeros((), dtype=dtype)
        for _ in range(meta_batch_size):
            data, labels = tasksets.train.sample()
            data = data.to(dtype)
            learner = meta_sgd.clone()
            for _ in range(adaptation_steps):
                learner.adapt(loss(learner(data[::2]), labels[::2]))
            meta_train_error = meta_train_error + loss(learner(data[1::2]), labels[1::2])
        meta_train_error = meta_train_error / meta_batch_size
        opt.zero_grad()
        meta_train_error.backward()
        opt.step()
        rates = torch.cat([lr.detach().flatten() for lr in meta_sgd.lrs])
        spread = f"rates {rates.mean():.4f} ± {rates.std():.4f}"
        print(f"{iteration:5}  loss {meta_train_error.item():.4f}  {spread}")
        errors.append(meta_train_error.item())
    return errors


if __name__ == "__main__":
    tyro.cli(main)
