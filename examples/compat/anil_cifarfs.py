"""ANIL: only the last layer adapts; the features are meta-learned, task by task.

    python examples/compat/anil_cifarfs.py --root FOLDER --iterations 1000 --hidden-size 64

`--root` is the folder of CIFAR-FS; without it the images are made up, of 16x16.
"""

import random

import synthetic
import torch
import tyro
from torch import Tensor, nn

import fastmaml.compat.learn2learn as l2l


def fast_adapt(
    batch: list[Tensor], features: nn.Module, learner: nn.Module, loss: nn.Module, steps: int
) -> tuple[Tensor, Tensor]:
    """Adapt the head to half of a task, and how well the other half is told apart then."""
    data, labels = batch
    embedded = features(data)
    for _ in range(steps):
        learner.adapt(loss(learner(embedded[::2]), labels[::2]))
    predictions = learner(embedded[1::2])
    return loss(predictions, labels[1::2]), l2l.utils.accuracy(predictions, labels[1::2])


def main(
    ways: int = 5,
    shots: int = 2,
    meta_lr: float = 0.002,
    fast_lr: float = 0.3,
    meta_batch_size: int = 3,
    adaptation_steps: int = 5,
    hidden_size: int = 8,
    iterations: int = 3,
    seed: int = 42,
    root: str | None = None,
    double: bool = False,
) -> list[float]:
    """Meta-train features and head; the mean query loss of every iteration."""
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
    head = nn.Linear(embedding_size, ways).to(dtype)
    head = l2l.algorithms.MAML(head, lr=fast_lr)
    opt = torch.optim.Adam([*features.parameters(), *head.parameters()], meta_lr)
    loss = nn.CrossEntropyLoss(reduction="mean")

    errors = []
    for iteration in range(iterations):
        opt.zero_grad()
        meta_train_error = meta_train_accuracy = 0.0
        for _ in range(meta_batch_size):
            learner = head.clone()
            data, labels = tasksets.train.sample()
            batch = [data.to(dtype), labels]
            error, accuracy = fast_adapt(batch, features, learner, loss, adaptation_steps)
            (error / meta_batch_size).backward()
            meta_train_error += error.item() / meta_batch_size
            meta_train_accuracy += accuracy.item() / meta_batch_size
        print(f"{iteration:5}  loss {meta_train_error:.4f}  accuracy {meta_train_accuracy:.1%}")
        errors.append(meta_train_error)
        opt.step()
    return errors


if __name__ == "__main__":
    tyro.cli(main)
