"""The class splits of Meta-Dataset, drawn as its authors drew them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fastmaml.episodes.decoding import need

MODES = ("train", "validation", "test")
SEED = 22


@final
@dataclass(frozen=True)
class ClassSplits:
    """Which classes of a data set are for training, validation and testing.

    Meta-Dataset (Triantafillou et al. 2020) numbers the classes in the order of their names and
    draws twice with numpy's ``RandomState(22)``: the classes that are not for testing, and of them
    those for training. NumPy promises that this generator never changes, so three counts say as
    much as lists of names. learn2learn's lists are the same, in the same order.

    Args:
        train: how many classes are for training.
        validation: how many are for validation.
        test: how many are for testing.
        every: the splits in the order in which mode "all" joins them; none: it has the classes in
            the order of their numbers.
    """

    train: int
    validation: int
    test: int
    every: tuple[str, ...] = ("train", "test", "validation")

    @property
    def classes(self) -> int:
        """How many there are in all."""
        return self.train + self.validation + self.test

    def of(self, mode: str) -> list[int]:
        """The numbers of the classes of a split; the label of each is its place in this list.

        Raises:
            ValueError: `mode` is none of train, validation, test and all.
        """
        if mode == "all" and not self.every:
            return list(range(self.classes))
        if mode == "all":
            return [number for split in self.every for number in self.of(split)]
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}, all.")
        draw = need("numpy").random.RandomState(SEED).choice
        known = draw(self.classes, self.train + self.validation, replace=False).tolist()
        train: list[int] = draw(known, self.train, replace=False).tolist()
        if mode == "train":
            return train
        if mode == "validation":
            return sorted(set(known) - set(train))
        return sorted(set(range(self.classes)) - set(known))
