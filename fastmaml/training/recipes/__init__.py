"""From a configuration to model, MAML, episodes and trainer."""

from fastmaml.training.recipes.build import (
    build_episodes,
    build_evaluator,
    build_maml,
    build_meta_trainer,
    build_trainer,
)
from fastmaml.training.recipes.parts import resolve_device

__all__ = [
    "build_episodes",
    "build_evaluator",
    "build_maml",
    "build_meta_trainer",
    "build_trainer",
    "resolve_device",
]
