"""`RandomClassRotation`: every class of a task turned by an angle of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmaml.compat.learn2learn.data.descriptions import Description
from fastmaml.compat.learn2learn.data.meta_dataset import MetaDataset


class RandomClassRotation:
    """Turns all images of a class by one angle, drawn for every class of a task.

    Args:
        dataset: what the indices of the descriptions refer to.
        degrees: the angles to draw from, counter-clockwise. Tensors ``[..., height, width]`` are
            turned by multiples of 90 only; images of Pillow by any angle.

    Raises:
        ValueError: when a tensor is to be turned by another angle.
    """

    def __init__(self, dataset: MetaDataset, degrees: Sequence[float]) -> None:
        self.dataset = dataset
        self.degrees = degrees

    def __call__(self, task_description: Description) -> Description:
        """The same description, whose items are turned."""
        label = self.dataset.indices_to_labels
        turns: dict[Any, Turn] = {}
        for data in task_description:
            name = label[data.index]
            if name not in turns:
                turns[name] = Turn(random.choice(self.degrees))
            data.transforms.append(turns[name])
        return task_description


class Turn:
    """From an item ``(image, ...)`` to the one with the image turned."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __call__(self, item: Any) -> tuple[Any, ...]:
        """The item with its image turned."""
        image, *more = item
        if not isinstance(image, Tensor):
            return image.rotate(self.degrees), *more
        if self.degrees % 90:
            raise ValueError(
                f"degrees={self.degrees}: tensors are turned by multiples of 90. Turn the images "
                "in a transform of the data set instead, before they become tensors."
            )
        return image.rot90(int(self.degrees // 90), (-2, -1)), *more
