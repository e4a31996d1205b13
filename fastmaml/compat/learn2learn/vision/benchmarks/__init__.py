"""`get_tasksets`: the task sets of the literature."""

from fastmaml.compat.learn2learn.vision.benchmarks.tasksets import (
    BenchmarkTasksets,
    get_tasksets,
    list_tasksets,
)

__all__ = ["BenchmarkTasksets", "get_tasksets", "list_tasksets"]
