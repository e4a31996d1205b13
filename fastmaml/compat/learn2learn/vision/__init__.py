"""Models, data sets, transforms and benchmarks of few-shot image classification."""

from fastmaml.compat.learn2learn.vision import benchmarks, datasets, models, transforms

__all__ = ["benchmarks", "datasets", "models", "transforms"]
