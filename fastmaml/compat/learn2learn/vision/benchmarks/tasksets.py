"""`get_tasksets`: the task sets of the literature."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from fastmaml.compat.learn2learn.data import (
    FilteredMetaDataset,
    MetaDataset,
    OnDeviceDataset,
    Taskset,
    transforms,
)
from fastmaml.compat.learn2learn.vision import datasets as sets
from fastmaml.compat.learn2learn.vision.datasets.images import MODES, Root
from fastmaml.compat.learn2learn.vision.transforms import RandomClassRotation

IMAGES: dict[str, Callable[..., Dataset[Any]]] = {
    "mini-imagenet": sets.MiniImagenet,
    "tiered-imagenet": sets.TieredImagenet,
    "fc100": sets.FC100,
    "cifarfs": sets.CIFARFS,
}
QUARTERS = (0.0, 90.0, 180.0, 270.0)
Device = torch.device | str | None


class BenchmarkTasksets(NamedTuple):
    """The task sets of a benchmark: ``train``, ``validation`` and ``test``."""

    train: Taskset
    validation: Taskset
    test: Taskset


def list_tasksets() -> list[str]:
    """The names that `get_tasksets` knows."""
    return ["omniglot", *IMAGES]


def get_tasksets(
    name: str,
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    num_tasks: int = -1,
    root: Root = "~/data",
    device: Device = None,
    *,
    data_augmentation: str | None = None,
    datasets: Sequence[Dataset[Any]] | None = None,
) -> BenchmarkTasksets:
    """The task sets of a benchmark for training, validation and testing.

    A task has all its examples, support and query, class by class; labels are 0, ..., ways − 1.

    "omniglot": the characters in random order (of Python's `random`), 1,100 for training, 100 for
    validation and 423 for testing, each class of a task turned by a random quarter. Data as
    `FullOmniglot`, downloaded if need be. The others are read from local files, as `MiniImagenet`,
    `TieredImagenet`, `FC100` and `CIFARFS` say.

    Args:
        name: one of `list_tasksets`.
        train_ways: classes a training task.
        train_samples: examples a class of a training task.
        test_ways, test_samples: the same for validation and testing.
        num_tasks: how many tasks each set has; -1: no end.
        root: the folder of the data.
        device: where the data are held as tensors; None: read example by example, on the CPU.
        data_augmentation: for the ImageNets: None, or "normalize" for numbers from 0 to 1.
        datasets: three of your own for training, validation and testing, instead of the files; any
            `name` will do then.

    Raises:
        ValueError: an unknown name or augmentation, or not three data sets.
        FileNotFoundError: the data are missing; the message says where they are to be had.
    """
    sizes = ((train_ways, train_samples), (test_ways, test_samples), (test_ways, test_samples))
    turned = False
    if datasets is not None:
        if len(datasets) != 3:
            raise ValueError(f"datasets has {len(datasets)}: give (train, validation, test).")
        parts = [_held(d, device) for d in datasets]
    elif name == "omniglot":
        parts, turned = _omniglot(root, device), True
    elif name in IMAGES:
        transform = _augmentation(name, data_augmentation)
        made = [IMAGES[name](root=root, mode=mode, transform=transform) for mode in MODES]
        parts = [_held(d, device) for d in made]
    else:
        raise ValueError(
            f"name={name!r} is unknown; choose one of {', '.join(list_tasksets())}, or give "
            "datasets=(train, validation, test)."
        )
    return BenchmarkTasksets(
        *(_taskset(part, *size, num_tasks, turned) for part, size in zip(parts, sizes, strict=True))
    )


def _taskset(data: MetaDataset, ways: int, samples: int, num_tasks: int, turned: bool) -> Taskset:
    steps: list[Any] = [
        transforms.NWays(data, ways),
        transforms.KShots(data, samples),
        transforms.LoadData(data),
        transforms.RemapLabels(data),
        transforms.ConsecutiveLabels(data),
    ]
    if turned:
        steps.append(RandomClassRotation(data, QUARTERS))
    return Taskset(data, steps, num_tasks)


def _held(data: Dataset[Any], device: Device) -> MetaDataset:
    return MetaDataset(data if device is None else OnDeviceDataset(data, device))


def _omniglot(root: Root, device: Device) -> list[MetaDataset]:
    data = _held(sets.FullOmniglot(root, download=True), device)
    classes = list(data.labels)
    random.shuffle(classes)
    if len(classes) <= 1200:
        raise ValueError(f"the Omniglot has {len(classes)} characters of 1,623: complete it.")
    parts = (classes[:1100], classes[1100:1200], classes[1200:])
    return [FilteredMetaDataset(data, part) for part in parts]


def _augmentation(name: str, wanted: str | None) -> Callable[[Any], Any] | None:
    if wanted == "lee2019":
        raise ValueError(
            "data_augmentation='lee2019' crops and jitters images of Pillow, for which torchvision "
            "is needed and not used here: give datasets=(train, validation, test) of your own, "
            "such as vision.datasets.MiniImagenet(root, mode, transform=...)."
        )
    if wanted not in (None, "normalize"):
        raise ValueError(f"data_augmentation={wanted!r}: choose None or 'normalize'.")
    # The other data sets have numbers from 0 to 1 already.
    return _to_unit if wanted == "normalize" and name == "mini-imagenet" else None


def _to_unit(image: torch.Tensor) -> torch.Tensor:
    return image / 255
