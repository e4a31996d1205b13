"""`mini_imagenet_tasksets`: the benchmark miniImageNet."""

from __future__ import annotations

from torch import Tensor

from fastmaml.compat.learn2learn.vision.benchmarks.lee2019 import Lee2019
from fastmaml.compat.learn2learn.vision.benchmarks.parts import (
    Device,
    Parts,
    check_augmentation,
    held,
    with_steps,
)
from fastmaml.compat.learn2learn.vision.datasets import MiniImagenet
from fastmaml.compat.learn2learn.vision.datasets.images import MODES, Root


def mini_imagenet_tasksets(
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    root: Root = "~/data",
    data_augmentation: str | None = None,
    device: Device = None,
) -> Parts:
    """Data sets and task transforms of miniImageNet, for `Taskset`.

    Args:
        train_ways: classes a training task.
        train_samples: examples a class of a training task.
        test_ways, test_samples: the same for validation and testing.
        root: the folder of the data.
        data_augmentation: None for numbers from 0 to 255, "normalize" for 0 to 1, or "lee2019", as
            `Lee2019`.
        device: where the data are held as tensors; None: read example by example, on the CPU.

    Returns:
        ``(datasets, transforms)``, three each: for training, validation and testing.

    Raises:
        ValueError: an unknown augmentation.
        FileNotFoundError: as `MiniImagenet`.
    """
    check_augmentation(data_augmentation, "mini-imagenet", lee2019=True)
    lee2019 = data_augmentation == "lee2019"
    transform = to_unit if data_augmentation == "normalize" else None
    parts = [
        held(
            MiniImagenet(root=root, mode=mode, transform=transform),
            device,
            Lee2019(training=mode == "train", largest=255) if lee2019 else None,
        )
        for mode in MODES
    ]
    return with_steps(parts, (train_ways, train_samples), (test_ways, test_samples))


def to_unit(image: Tensor) -> Tensor:
    """Numbers from 0 to 255 scaled to 0 to 1."""
    return image / 255
