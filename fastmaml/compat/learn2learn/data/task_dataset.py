"""`Taskset`: tasks drawn from a data set."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fastmaml.compat.learn2learn.data.descriptions import DataDescription, Description
from fastmaml.compat.learn2learn.data.meta_dataset import MetaDataset
from fastmaml.compat.learn2learn.data.transforms import KShots, NWays

__all__ = ["DataDescription", "Description", "TaskDataset", "Taskset"]

TaskTransforms = Sequence[Callable[[Any], Any]] | Callable[[Any], Any]


class Taskset(Dataset[Any]):
    """Tasks drawn at random from a data set, each a batch ``(inputs, labels)``.

    All random numbers come from Python's `random`, so ``random.seed`` fixes the tasks.

    Args:
        dataset: what `MetaDataset` takes, or such.
        task_transforms: applied one after another to the description of a task (a list of
            `DataDescription`), beginning with None, which stands for all examples; or one function.
        num_tasks: how many tasks there are. The description of task i is drawn when it is asked for
            and kept. -1: no end; every task is new, and ``len()`` is 1.
        task_collate: makes a batch of a list of items; None for `default_collate`. Labels that were
            remapped are then on the CPU, wherever the inputs are.

    Raises:
        ValueError: `num_tasks` is 0 or below -1.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        task_transforms: TaskTransforms | None = None,
        num_tasks: int = -1,
        task_collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if num_tasks < -1 or num_tasks == 0:
            raise ValueError(f"num_tasks={num_tasks}: give a positive number, or -1 for no end.")
        self.dataset = dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
        self.task_transforms = [] if task_transforms is None else task_transforms
        self.num_tasks = num_tasks
        self.task_collate = default_collate if task_collate is None else task_collate
        self.sampled_descriptions: dict[int, Description] = {}
        self._task_id = 0

    def sample(self) -> Any:
        """A task: a new one where there is no end, else any of those there are."""
        return self[random.randint(0, len(self) - 1)]

    def sample_task_description(self) -> Description:
        """A new task's description, made by the task transforms."""
        transforms = self.task_transforms
        if callable(transforms):
            return transforms(None)
        description: Any = None
        rest = iter(transforms)
        if _fusible(transforms):
            # The same draws as one after the other, without a description of whole classes.
            ways: Any = next(rest)
            shots: Any = next(rest)
            description = shots.of_classes(ways.draw())
        for transform in rest:
            description = transform(description)
        if description is None:
            raise ValueError(
                "there are no task_transforms that describe a task: give at least LoadData, and "
                "what chooses classes and examples, such as NWays and KShots."
            )
        return description

    def description(self, i: int) -> Description:
        """The kept description of task `i`, drawn when it is first asked for."""
        if i not in self.sampled_descriptions:
            self.sampled_descriptions[i] = self.sample_task_description()
        return self.sampled_descriptions[i]

    def get_task(self, task_description: Description) -> Any:
        """The batch that a description describes."""
        if self.task_collate is default_collate:
            batch = _all_at_once(task_description)
            if batch is not None:
                return batch
        items = []
        for data in task_description:
            item: Any = data.index
            for transform in data.transforms:
                item = transform(item)
            items.append(item)
        return self.task_collate(items)

    def __len__(self) -> int:
        return 1 if self.num_tasks == -1 else self.num_tasks

    def __getitem__(self, i: int) -> Any:
        if self.num_tasks == -1:
            return self.get_task(self.sample_task_description())
        if not 0 <= i < self.num_tasks:
            raise IndexError(f"task {i} of {self.num_tasks}.")
        return self.get_task(self.description(i))

    def __iter__(self) -> Iterator[Any]:
        self._task_id = 0
        return self

    def __next__(self) -> Any:
        if self._task_id == self.num_tasks:
            raise StopIteration
        self._task_id += 1
        return self[self._task_id - 1]

    def __add__(self, other: Any) -> NoReturn:
        raise NotImplementedError(
            "task sets cannot be added: add their data sets with UnionMetaDataset."
        )


class TaskDataset(Taskset):
    """The former name of `Taskset`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("TaskDataset is now called Taskset.", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


def _fusible(transforms: Sequence[Any]) -> bool:
    """Whether the description begins with some examples of some of all classes."""
    if len(transforms) < 2 or type(transforms[0]) is not NWays or type(transforms[1]) is not KShots:
        return False
    return transforms[0].dataset is transforms[1].dataset and not transforms[1].replacement


def _all_at_once(description: Description) -> list[Tensor] | None:
    """The batch, where all items pass through the same transforms and these take many at a time."""
    transforms = description[0].transforms if description else []
    if not transforms or any(data.transforms != transforms for data in description):
        return None
    batch: Any = [data.index for data in description]
    for transform in transforms:
        many = getattr(transform, "many", None)
        if many is None:
            return None
        batch = many(batch)
        if batch is None:
            return None
    x, y = batch
    return [x, y if isinstance(y, Tensor) else torch.tensor(y)]
