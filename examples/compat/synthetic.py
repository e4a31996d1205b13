"""Small made-up data for the scripts of this folder, so that they run anywhere in seconds."""

import torch
from torch.utils.data import TensorDataset

import fastmaml.compat.learn2learn as l2l


def images(
    seed: int, shape: tuple[int, int, int], classes: int = 12, examples: int = 10
) -> TensorDataset:
    """Every class is a pattern of its own, seen through noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, 1, *shape, generator=generator)
    noise = torch.randn(classes, examples, *shape, generator=generator)
    labels = torch.arange(classes).repeat_interleave(examples)
    return TensorDataset((patterns + 0.3 * noise).flatten(0, 1), labels)


def tasksets(
    ways: int, samples: int, shape: tuple[int, int, int]
) -> l2l.vision.benchmarks.BenchmarkTasksets:
    """Task sets for training, validation and testing, each of classes of its own."""
    return l2l.vision.benchmarks.get_tasksets(
        "synthetic",
        train_ways=ways,
        train_samples=samples,
        test_ways=ways,
        test_samples=samples,
        datasets=[images(seed, shape) for seed in range(3)],
    )
