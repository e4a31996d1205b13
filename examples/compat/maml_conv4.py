"""MAML with the four-layer convolutional network and five inner steps, task by task.

    python examples/compat/maml_conv4.py --root FOLDER --iterations 1000 --hidden-size 32

`--root` is the folder of mini-imagenet-cache-*.pkl; without it the images are made up, of 16x16.
"""

import random

import synthetic
import torch
import tyro
from torch import Tensor, nn

import fastmaml.compat.learn2learn as l2l


def fast_adapt(
    batch: list[Tensor], learner: nn.Module, loss: nn.Module, steps: int, shots: int
) -> tuple[Tensor, Tensor]:
    """Adapt to the support set of a task, and how well the query set is told apart then."""
    data, labels = batch
    (support, support_labels), (query, query_labels) = l2l.data.partition_task(data, labels, shots)
    for _ in range(steps):
        learner.adapt(loss(learner(support), support_labels))
    predictions = learner(query)
    return loss(predictions, query_labels), l2l.utils.accuracy(predictions, query_labels)


def main(
    ways: int = 5,
    shots: int = 1,
    queries: int = 2,
    meta_lr: float = 0.003,
    fast_lr: float = 0.1,
    meta_batch_size: int = 3,
    adaptation_steps: int = 5,
    hidden_size: int = 8,
    iterations: int = 3,
    seed: int = 42,
    root: str | None = None,
    double: bool = False,
) -> list[float]:
    """Meta-train; the mean query loss of every iteration."""
    random.seed(seed)
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    samples, embedding_size = shots + queries, None
    if root is None:
        tasksets = synthetic.tasksets(ways, samples, (3, 16, 16))
        embedding_size = hidden_size
    else:
        tasksets = l2l.vision.benchmarks.get_tasksets(
            "mini-imagenet",
            train_ways=ways,
            train_samples=samples,
            test_ways=ways,
            test_samples=samples,
            root=root,
            data_augmentation="normalize",
        )
    model = l2l.vision.models.MiniImagenetCNN(
        ways, hidden_size=hidden_size, embedding_size=embedding_size
    )
    maml = l2l.algorithms.MAML(model.to(dtype), lr=fast_lr, first_order=False)
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
            error, accuracy = fast_adapt(batch, learner, loss, adaptation_steps, shots)
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
