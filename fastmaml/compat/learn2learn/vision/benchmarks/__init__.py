"""`get_tasksets`: the task sets of the literature."""

from fastmaml.compat.learn2learn.vision.benchmarks.cifarfs_benchmark import cifarfs_tasksets
from fastmaml.compat.learn2learn.vision.benchmarks.fc100_benchmark import fc100_tasksets
from fastmaml.compat.learn2learn.vision.benchmarks.mini_imagenet_benchmark import (
    mini_imagenet_tasksets,
)
from fastmaml.compat.learn2learn.vision.benchmarks.omniglot_benchmark import omniglot_tasksets
from fastmaml.compat.learn2learn.vision.benchmarks.tasksets import (
    BenchmarkTasksets,
    get_tasksets,
    list_tasksets,
)
from fastmaml.compat.learn2learn.vision.benchmarks.tiered_imagenet_benchmark import (
    tiered_imagenet_tasksets,
)

__all__ = [
    "BenchmarkTasksets",
    "cifarfs_tasksets",
    "fc100_tasksets",
    "get_tasksets",
    "list_tasksets",
    "mini_imagenet_tasksets",
    "omniglot_tasksets",
    "tiered_imagenet_tasksets",
]
