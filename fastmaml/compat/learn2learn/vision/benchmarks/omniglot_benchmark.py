"""`omniglot_tasksets`: the benchmark Omniglot."""

from __future__ import annotations

import random
from typing import Any

from fastmaml.compat.learn2learn.data import FilteredMetaDataset, MetaDataset, transforms
from fastmaml.compat.learn2learn.vision.benchmarks.parts import (
    Device,
    Parts,
    check_augmentation,
    held,
)
from fastmaml.compat.learn2learn.vision.datasets import FullOmniglot
from fastmaml.compat.learn2learn.vision.datasets.images import Root
from fastmaml.compat.learn2learn.vision.transforms import RandomClassRotation

QUARTERS = (0.0, 90.0, 180.0, 270.0)


def omniglot_tasksets(
    train_ways: int,
    train_samples: int,
    test_ways: int,
    test_samples: int,
    root: Root,
    device: Device = None,
    data_augmentation: str | None = None,
) -> Parts:
    """Data sets and task transforms of Omniglot, for `Taskset`.

    The characters are in random order (of Python's `random`), 1,100 for training, 100 for
    validation and 423 for testing; each class of a task is turned by a random quarter.

    Args:
        train_ways: classes a training task.
        train_samples: examples a class of a training task.
        test_ways, test_samples: the same for validation and testing.
        root: the folder of the data, downloaded if need be.
        device: where the data are held as tensors; None: on the CPU.
        data_augmentation: None or "normalize", which is the same: numbers are 0 and 1.

    Returns:
        ``(datasets, transforms)``, three each: for training, validation and testing.

    Raises:
        ValueError: an unknown augmentation, or characters are missing.
        ConnectionError, ImportError: as `FullOmniglot`.
    """
    check_augmentation(data_augmentation, "omniglot")
    data = held(FullOmniglot(root, download=True), device)
    classes = list(data.labels)
    random.shuffle(classes)
    if len(classes) <= 1200:
        raise ValueError(f"the Omniglot has {len(classes)} characters of 1,623: complete it.")
    parts = [
        FilteredMetaDataset(data, labels)
        for labels in (classes[:1100], classes[1100:1200], classes[1200:])
    ]
    sizes = ((train_ways, train_samples), (test_ways, test_samples), (test_ways, test_samples))
    return parts, [_steps(part, *size) for part, size in zip(parts, sizes, strict=True)]


def _steps(data: MetaDataset, ways: int, shots: int) -> list[Any]:
    return [
        transforms.FusedNWaysKShots(data, n=ways, k=shots),
        transforms.LoadData(data),
        transforms.RemapLabels(data),
        transforms.ConsecutiveLabels(data),
        RandomClassRotation(data, QUARTERS),
    ]
