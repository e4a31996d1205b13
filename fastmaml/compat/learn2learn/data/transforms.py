"""Task transforms: functions from the description of a task to another one.

A description is a list of `DataDescription`, or None for all examples of the data set.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmaml.compat.learn2learn.data.descriptions import DataDescription, Description
from fastmaml.compat.learn2learn.data.meta_dataset import MetaDataset


class TaskTransform(ABC):
    """A function from description to description that knows the data set.

    Args:
        dataset: what the indices of the descriptions refer to.
    """

    def __init__(self, dataset: MetaDataset) -> None:
        self.dataset = dataset

    def new_task(self) -> Description:
        """The description of all examples."""
        return [DataDescription(i) for i in range(len(self.dataset))]

    @abstractmethod
    def __call__(self, task_description: Description | None) -> Description:
        """The description of a task after this transform; None begins a new one."""


class LoadData(TaskTransform):
    """Reads the examples of a task from `dataset`."""

    def __init__(self, dataset: MetaDataset) -> None:
        super().__init__(dataset)
        self.load = Load(dataset)

    def __call__(self, task_description: Description | None) -> Description:
        """The same description, whose items are read from the data set."""
        task_description = self.new_task() if task_description is None else task_description
        for data in task_description:
            data.transforms.append(self.load)
        return task_description


class FilterLabels(TaskTransform):
    """Keeps the examples of some classes.

    Args:
        dataset: what the indices of the descriptions refer to.
        labels: of these classes.
    """

    def __init__(self, dataset: MetaDataset, labels: Sequence[Any]) -> None:
        super().__init__(dataset)
        self.labels = labels
        self._kept = set(labels)

    def __call__(self, task_description: Description | None) -> Description:
        """The description of what is kept, in the same order."""
        task_description = self.new_task() if task_description is None else task_description
        label = self.dataset.indices_to_labels
        return [data for data in task_description if label[data.index] in self._kept]


class ConsecutiveLabels(TaskTransform):
    """Sorts a task's examples by the labels of `dataset`; those of a class keep their order."""

    def __call__(self, task_description: Description | None) -> Description:
        """The sorted description."""
        task_description = self.new_task() if task_description is None else task_description
        label = self.dataset.indices_to_labels
        return sorted(task_description, key=lambda data: label[data.index])


class RemapLabels(TaskTransform):
    """Renames the labels of a task to 0, ..., classes − 1.

    Args:
        dataset: what the indices of the descriptions refer to.
        shuffle: in random order; else in that of a set of the labels.
    """

    def __init__(self, dataset: MetaDataset, shuffle: bool = True) -> None:
        super().__init__(dataset)
        self.shuffle = shuffle

    def __call__(self, task_description: Description | None) -> Description:
        """The same description, whose items have the new labels."""
        task_description = self.new_task() if task_description is None else task_description
        label = self.dataset.indices_to_labels
        labels = list({label[data.index] for data in task_description})
        if self.shuffle:
            random.shuffle(labels)
        rename = Rename({old: new for new, old in enumerate(labels)})
        for data in task_description:
            data.transforms.append(rename)
        return task_description


class NWays(TaskTransform):
    """Keeps the examples of `n` classes of the description, drawn at random.

    Args:
        dataset: what the indices of the descriptions refer to.
        n: how many classes.
    """

    def __init__(self, dataset: MetaDataset, n: int = 2) -> None:
        super().__init__(dataset)
        self.n = n

    def draw(self, labels: Sequence[Any] | None = None) -> list[Any]:
        """The labels of `n` of these classes; None for all."""
        return _sample(self.dataset.labels if labels is None else labels, self.n, "classes")

    def new_task(self) -> Description:
        """All examples of `n` classes."""
        by_label = self.dataset.labels_to_indices
        return [DataDescription(i) for label in self.draw() for i in by_label[label]]

    def __call__(self, task_description: Description | None) -> Description:
        """The description of what is kept, in the same order."""
        if task_description is None:
            return self.new_task()
        label = self.dataset.indices_to_labels
        kept = set(self.draw(list({label[data.index] for data in task_description})))
        return [data for data in task_description if label[data.index] in kept]


class KShots(TaskTransform):
    """Keeps `k` examples of every class of the description, drawn at random.

    Args:
        dataset: what the indices of the descriptions refer to.
        k: how many examples a class.
        replacement: whether an example may be drawn more than once.
    """

    def __init__(self, dataset: MetaDataset, k: int = 1, replacement: bool = False) -> None:
        super().__init__(dataset)
        self.k = k
        self.replacement = replacement

    def of_classes(self, labels: Sequence[Any]) -> Description:
        """`k` examples of each of these classes, without replacement."""
        by_label, k = self.dataset.labels_to_indices, self.k
        return [
            DataDescription(i)
            for label in labels
            for i in _sample(by_label[label], k, f"examples of class {label}")
        ]

    def __call__(self, task_description: Description | None) -> Description:
        """The description of what was drawn, class by class."""
        task_description = self.new_task() if task_description is None else task_description
        label = self.dataset.indices_to_labels
        by_label: dict[Any, Description] = {}
        for data in task_description:
            by_label.setdefault(label[data.index], []).append(data)
        drawn: Description = []
        for name, same in by_label.items():
            if self.replacement:
                drawn += [data.copy() for data in random.choices(same, k=self.k)]
            else:
                drawn += _sample(same, self.k, f"examples of class {name}")
        return drawn


class FusedNWaysKShots(TaskTransform):
    """`FilterLabels`, `NWays` and `KShots` in one, and fast where it comes first.

    Args:
        dataset: what the indices of the descriptions refer to.
        n: how many classes.
        k: how many examples a class.
        replacement: whether an example may be drawn more than once.
        filter_labels: of the classes to draw from; None for all.
    """

    def __init__(
        self,
        dataset: MetaDataset,
        n: int = 2,
        k: int = 1,
        replacement: bool = False,
        filter_labels: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(dataset)
        self.n, self.k, self.replacement = n, k, replacement
        self.filter_labels = dataset.labels if filter_labels is None else filter_labels
        self.filter = FilterLabels(dataset, self.filter_labels)
        self.nways = NWays(dataset, n)
        self.kshots = KShots(dataset, k, replacement)

    def new_task(self) -> Description:
        """`k` examples of each of `n` classes."""
        labels = self.nways.draw(self.filter_labels)
        if not self.replacement:
            return self.kshots.of_classes(labels)
        by_label = self.dataset.labels_to_indices
        return [
            DataDescription(random.choice(by_label[label]))
            for label in labels
            for _ in range(self.k)
        ]

    def __call__(self, task_description: Description | None) -> Description:
        """The description of what was drawn."""
        if task_description is None:
            return self.new_task()
        return self.kshots(self.nways(self.filter(task_description)))


class Load:
    """From an index to the item of a data set."""

    def __init__(self, dataset: MetaDataset) -> None:
        self.dataset = dataset

    def __call__(self, index: int) -> Any:
        """The data set's item at `index`."""
        return self.dataset[index]

    def many(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """The batch of these items, where the data set can be read so."""
        read = getattr(self.dataset, "tensors_at", None)
        found: tuple[Tensor, Tensor] | None = None if read is None else read(indices)
        return found


class Rename:
    """From an item to one with another label."""

    def __init__(self, names: dict[Any, int]) -> None:
        self.names = names

    def __call__(self, item: Any) -> list[Any]:
        """The item with its new label."""
        x, label, *more = item
        return [x, self.names[label.item() if isinstance(label, Tensor) else label], *more]

    def many(self, batch: tuple[Tensor, Any]) -> list[Any]:
        """A batch ``(inputs, labels)`` with its labels renamed."""
        x, labels = batch
        known = labels.tolist() if isinstance(labels, Tensor) else labels
        return [x, [self.names[label] for label in known]]


def _sample(population: Sequence[Any], k: int, what: str) -> list[Any]:
    if k > len(population):
        raise ValueError(f"a task takes {k} {what}, but there are {len(population)}.")
    return random.sample(population, k)
