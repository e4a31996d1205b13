"""What the benchmarks share: data sets held where they are wanted, and task transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastmaml.compat.learn2learn.data import MetaDataset, OnDeviceDataset, transforms
from fastmaml.compat.learn2learn.vision.benchmarks.lee2019 import Lee2019
from fastmaml.compat.learn2learn.vision.datasets.images import Images

Device = torch.device | str | None
Parts = tuple[Sequence[MetaDataset], Sequence[list[Any]]]
"""Data sets and their task transforms, for training, validation and testing."""


def held(data: Images, device: Device, augment: Lee2019 | None = None) -> MetaDataset:
    """A data set that is read example by example, or lies on a device as tensors.

    Args:
        data: the data set.
        device: where it lies; None: where it is.
        augment: the transform of its images. One that draws is applied whenever an item is read,
            on a device as well, and not once when they are stored.
    """
    if augment is not None and (device is None or not augment.training):
        data.transform, augment = augment, None
    return MetaDataset(data if device is None else OnDeviceDataset(data, device, augment))


def with_steps(parts: Sequence[MetaDataset], train: Sequence[int], test: Sequence[int]) -> Parts:
    """The task transforms of the literature for data sets for training, validation and testing.

    Args:
        parts: the three data sets.
        train: classes a training task, and examples a class.
        test: the same for validation and testing.
    """
    for_train, for_validation, for_test = (
        [transforms.NWays(data, ways), transforms.KShots(data, shots), transforms.LoadData(data)]
        for data, (ways, shots) in zip(parts, (train, test, test), strict=True)
    )
    rename, sort = transforms.RemapLabels, transforms.ConsecutiveLabels
    for_train += [rename(parts[0]), sort(parts[0])]
    for_validation += [sort(parts[1]), rename(parts[1])]  # learn2learn's order
    for_test += [rename(parts[2]), sort(parts[2])]
    return parts, (for_train, for_validation, for_test)


def check_augmentation(wanted: str | None, benchmark: str, lee2019: bool = False) -> None:
    """Refuse an augmentation that a benchmark does not have.

    Raises:
        ValueError: `wanted` is none of them.
    """
    if wanted in (None, "normalize") or (wanted == "lee2019" and lee2019):
        return
    known = "'normalize' or 'lee2019'" if lee2019 else "'normalize'"
    raise ValueError(
        f"data_augmentation={wanted!r} of the benchmark {benchmark}: choose None, {known}, or give "
        "datasets=(train, validation, test) with transforms of your own."
    )
