"""Data sets by class, tasks drawn from them, and the transforms that say which."""

from fastmaml.compat.learn2learn.data import samplers, transforms, utils
from fastmaml.compat.learn2learn.data.meta_dataset import (
    FilteredMetaDataset,
    MetaDataset,
    UnionMetaDataset,
)
from fastmaml.compat.learn2learn.data.samplers import TasksetSampler
from fastmaml.compat.learn2learn.data.task_dataset import DataDescription, TaskDataset, Taskset
from fastmaml.compat.learn2learn.data.utils import (
    InfiniteIterator,
    OnDeviceDataset,
    partition_task,
)

__all__ = [
    "DataDescription",
    "FilteredMetaDataset",
    "InfiniteIterator",
    "MetaDataset",
    "OnDeviceDataset",
    "TaskDataset",
    "Taskset",
    "TasksetSampler",
    "UnionMetaDataset",
    "partition_task",
    "samplers",
    "transforms",
    "utils",
]
