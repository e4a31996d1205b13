"""`get_tasksets`: the task sets of the literature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from fastmaml.compat.learn2learn.data import MetaDataset, OnDeviceDataset, Taskset
from fastmaml.compat.learn2learn.vision.benchmarks.cifarfs_benchmark import cifarfs_tasksets
from fastmaml.compat.learn2learn.vision.benchmarks.fc100_benchmark import fc100_tasksets
from fastmaml.compat.learn2learn.vision.benchmarks.mini_imagenet_benchmark import (
    mini_imagenet_tasksets,
)
from fastmaml.compat.learn2learn.vision.benchmarks.omniglot_benchmark import omniglot_tasksets
from fastmaml.compat.learn2learn.vision.benchmarks.parts import Device, Parts, with_steps
from fastmaml.compat.learn2learn.vision.benchmarks.tiered_imagenet_benchmark import (
    tiered_imagenet_tasksets,
)
from fastmaml.compat.learn2learn.vision.datasets.images import Root

TASKSETS: dict[str, Callable[..., Parts]] = {
    "omniglot": omniglot_tasksets,
    "mini-imagenet": mini_imagenet_tasksets,
    "tiered-imagenet": tiered_imagenet_tasksets,
    "fc100": fc100_tasksets,
    "cifarfs": cifarfs_tasksets,
}


class BenchmarkTasksets(NamedTuple):
    """The task sets of a benchmark: ``train``, ``validation`` and ``test``."""

    train: Taskset
    validation: Taskset
    test: Taskset


def list_tasksets() -> list[str]:
    """The names that `get_tasksets` knows."""
    return list(TASKSETS)


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

    A task has all its examples, support and query, class by class; labels are 0, ..., ways − 1. The
    data are those of `omniglot_tasksets`, `mini_imagenet_tasksets`, `tiered_imagenet_tasksets`,
    `fc100_tasksets` and `cifarfs_tasksets`. Omniglot is downloaded if need be.

    Args:
        name: one of `list_tasksets`.
        train_ways: classes a training task.
        train_samples: examples a class of a training task.
        test_ways, test_samples: the same for validation and testing.
        num_tasks: how many tasks each set has; -1: no end.
        root: the folder of the data.
        device: where the data are held as tensors; None: read example by example, on the CPU.
        data_augmentation: None, "normalize" for numbers from 0 to 1, or, for the ImageNets,
            "lee2019": crops, colours and mirrors at random for training, and normalised colours.
        datasets: three of your own for training, validation and testing, instead of the files; any
            `name` will do then.

    Raises:
        ValueError: an unknown name or augmentation, not three data sets, or an augmentation of data
            sets of your own.
        FileNotFoundError: the data are missing; the message says where they are to be had.
    """
    sizes = ((train_ways, train_samples), (test_ways, test_samples))
    if datasets is not None:
        parts, steps = with_steps(_own(datasets, device, data_augmentation), *sizes)
    elif name in TASKSETS:
        parts, steps = TASKSETS[name](
            *sizes[0], *sizes[1], root=root, device=device, data_augmentation=data_augmentation
        )
    else:
        raise ValueError(
            f"name={name!r} is unknown; choose one of {', '.join(list_tasksets())}, or give "
            "datasets=(train, validation, test)."
        )
    return BenchmarkTasksets(
        *(Taskset(part, step, num_tasks) for part, step in zip(parts, steps, strict=True))
    )


def _own(
    datasets: Sequence[Dataset[Any]], device: Device, data_augmentation: str | None
) -> list[MetaDataset]:
    if len(datasets) != 3:
        raise ValueError(f"datasets has {len(datasets)}: give (train, validation, test).")
    if data_augmentation is not None:
        raise ValueError(
            f"data_augmentation={data_augmentation!r} is for the benchmarks by name: data sets of "
            "your own have transforms of your own."
        )
    return [MetaDataset(d if device is None else OnDeviceDataset(d, device)) for d in datasets]
