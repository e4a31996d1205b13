"""MAML with the fully connected network for Omniglot, task by task.

    python examples/compat/maml_omniglot.py --root FOLDER --iterations 1000 --meta-batch-size 32

`--root` is the folder of Omniglot; without it the images are made up.
"""

import random

import synthetic
import torch
import tyro
from torch import Tensor, nn

import fastmaml.compat.learn2learn as l2l


def fast_adapt(
    batch: list[Tensor], learner: nn.Module, loss: nn.Module, steps: int, shots: int, ways: int
) -> tuple[Tensor, Tensor]:
    """Adapt to half of a task, and how well the other half is told apart then."""
    data, labels = batch
    adaptation = torch.zeros(len(data), dtype=torch.bool)
    adaptation[torch.arange(shots * ways) * 2] = True  # a class's examples lie side by side
    for _ in range(steps):
        learner.adapt(loss(learner(data[adaptation]), labels[adaptation]))
    predictions = learner(data[~adaptation])
    correct = l2l.utils.accuracy(predictions, labels[~adaptation])
    return loss(predictions, labels[~adaptation]), correct


def main(
    ways: int = 5,
    shots: int = 1,
    meta_lr: float = 0.003,
    fast_lr: float = 0.5,
    meta_batch_size: int = 4,
    adaptation_steps: int = 1,
    iterations: int = 3,
    seed: int = 42,
    root: str | None = None,
    double: bool = False,
) -> list[float]:
    """Meta-train; the mean query loss of every iteration."""
    random.seed(seed)
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    if root is None:
        tasksets = synthetic.tasksets(ways, 2 * shots, (1, 28, 28))
    else:
        tasksets = l2l.vision.benchmarks.get_tasksets(
            "omniglot",
            train_ways=ways,
            train_samples=2 * shots,
            test_ways=ways,
            test_samples=2 * shots,
            root=root,
        )
    model = l2l.vision.models.OmniglotFC(28**2, ways).to(dtype)
    maml = l2l.algorithms.MAML(model, lr=fast_lr, first_order=False)
    opt = torch.optim.Adam(maml.parameters(), meta_lr)
    loss = nn.CrossEntropyLoss(reduction="mean")

    errors = []
    for iteration in range(iterations):
        opt.zero_grad()
        meta_train_error = meta_train_accuracy = 0.0
        for _ in range(meta_batch_size):
            learner = maml.clone()
            data, labels = tasksets.train.sample()
            batch = [data.to(dtype), labels]
            error, accuracy = fast_adapt(batch, learner, loss, adaptation_steps, shots, ways)
            error.backward()
            meta_train_error += error.item() / meta_batch_size
            meta_train_accuracy += accuracy.item() / meta_batch_size
        print(f"{iteration:5}  loss {meta_train_error:.4f}  accuracy {meta_train_accuracy:.1%}")
        errors.append(meta_train_error)
        for p in maml.parameters():
            p.grad.mul_(1.0 / meta_batch_size)
        opt.step()
    return errors


if __name__ == "__main__":
    tyro.cli(main)
