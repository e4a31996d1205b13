"""`Runs`: the labels of examples that lie class by class."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import final


@final
class Runs(Mapping[int, int]):
    """Labels by index, where class 0 has the first examples, class 1 the next, and so on.

    It takes as much memory as there are classes, not examples.

    Args:
        sizes: how many examples each class has.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.ends: list[int] = []
        for size in sizes:
            self.ends.append(size + (self.ends[-1] if self.ends else 0))
        self.by_label = {
            label: range(end - size, end)
            for label, (size, end) in enumerate(zip(sizes, self.ends, strict=True))
            if size
        }

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise KeyError(index)
        return bisect_right(self.ends, index)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0
