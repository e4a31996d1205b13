"""From a configuration to model, MAML, episodes and trainer."""

from fastmaml.training.recipes.build import (
    build_episodes,
    build_maml,
    build_trainer,
    resolve_device,
)

__all__ = ["build_episodes", "build_maml", "build_trainer", "resolve_device"]
