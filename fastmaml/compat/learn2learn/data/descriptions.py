"""What describes a task before its data are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class DataDescription:
    """One example of a task.

    Args:
        index: of the example in the data set.

    Attributes:
        transforms: functions that make the item, the first of the index.
    """

    __slots__ = ("index", "transforms")

    def __init__(self, index: int) -> None:
        self.index = index
        self.transforms: list[Callable[[Any], Any]] = []

    def copy(self) -> DataDescription:
        """Another one of the same example."""
        other = DataDescription(self.index)
        other.transforms = list(self.transforms)
        return other


Description = list[DataDescription]
