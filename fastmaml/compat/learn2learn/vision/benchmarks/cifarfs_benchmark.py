"""`cifarfs_tasksets`: the benchmark CIFAR-FS."""

from __future__ import annotations

from fastmaml.compat.learn2learn.vision.benchmarks.parts import (
    Device,
    Parts,
    check_augmentation,
    held,
    with_steps,
)
from fastmaml.compat.learn2learn.vision.datasets import CIFARFS
from fastmaml.compat.learn2learn.vision.datasets.images import MODES, Root


def cifarfs_tasksets(
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    root: Root = "~/data",
    device: Device = None,
    data_augmentation: str | None = None,
) -> Parts:
    """Data sets and task transforms of CIFAR-FS, for `Taskset`.

    Args:
        train_ways: classes a training task.
        train_samples: examples a class of a training task.
        test_ways, test_samples: the same for validation and testing.
        root: the folder of the data.
        device: where the data are held as tensors; None: read example by example, on the CPU.
        data_augmentation: None or "normalize", which is the same: numbers are from 0 to 1.

    Returns:
        ``(datasets, transforms)``, three each: for training, validation and testing.

    Raises:
        ValueError: an unknown augmentation.
        FileNotFoundError: as `CIFARFS`.
    """
    check_augmentation(data_augmentation, "cifarfs")
    parts = [held(CIFARFS(root=root, mode=mode), device) for mode in MODES]
    return with_steps(parts, (train_ways, train_samples), (test_ways, test_samples))
