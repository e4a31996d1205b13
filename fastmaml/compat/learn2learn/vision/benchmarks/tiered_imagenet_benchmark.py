"""`tiered_imagenet_tasksets`: the benchmark tieredImageNet."""

from __future__ import annotations

from fastmaml.compat.learn2learn.vision.benchmarks.lee2019 import Lee2019
from fastmaml.compat.learn2learn.vision.benchmarks.parts import (
    Device,
    Parts,
    check_augmentation,
    held,
    with_steps,
)
from fastmaml.compat.learn2learn.vision.datasets import TieredImagenet
from fastmaml.compat.learn2learn.vision.datasets.images import MODES, Root


def tiered_imagenet_tasksets(
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    root: Root = "~/data",
    data_augmentation: str | None = None,
    device: Device = None,
) -> Parts:
    """Data sets and task transforms of tieredImageNet, for `Taskset`.

    Args:
        train_ways: classes a training task.
        train_samples: examples a class of a training task.
        test_ways, test_samples: the same for validation and testing.
        root: the folder of the data.
        data_augmentation: None or "normalize", which is the same: numbers are from 0 to 1; or
            "lee2019", as `Lee2019`.
        device: where the data are held as tensors; None: read example by example, on the CPU.

    Returns:
        ``(datasets, transforms)``, three each: for training, validation and testing.

    Raises:
        ValueError: an unknown augmentation.
        FileNotFoundError: as `TieredImagenet`.
    """
    check_augmentation(data_augmentation, "tiered-imagenet", lee2019=True)
    lee2019 = data_augmentation == "lee2019"
    parts = [
        held(
            TieredImagenet(root=root, mode=mode),
            device,
            Lee2019(training=mode == "train") if lee2019 else None,
        )
        for mode in MODES
    ]
    return with_steps(parts, (train_ways, train_samples), (test_ways, test_samples))
