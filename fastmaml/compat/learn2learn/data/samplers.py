"""`TasksetSampler`: the indices of tasks, for a `DataLoader`."""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Sampler

from fastmaml.compat.learn2learn.data.task_dataset import Description, Taskset


class TasksetSampler(Sampler[list[int]]):
    """A ``batch_sampler`` whose batches are the examples of a task.

    Only which examples a task has is taken from the task set: labels are not remapped.

    Args:
        taskset: of finitely many tasks, or without an end.
        shuffle: whether finitely many come in random order.
    """

    def __init__(self, taskset: Taskset, shuffle: bool = True) -> None:
        self.taskset = taskset
        self.shuffle = shuffle

    def description2indices(self, task_description: Description) -> list[int]:
        """The indices of a task's examples."""
        return [data.index for data in task_description]

    def __iter__(self) -> Iterator[list[int]]:
        while self.taskset.num_tasks == -1:
            yield self.description2indices(self.taskset.sample_task_description())
        order = list(range(self.taskset.num_tasks))
        if self.shuffle:
            random.shuffle(order)
        for i in order:
            yield self.description2indices(self.taskset.description(i))
