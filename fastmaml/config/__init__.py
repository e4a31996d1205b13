"""The configurations: frozen dataclasses for the flags, the TOML file and the checkpoint."""

from fastmaml.config.loop import LoopConfig
from fastmaml.config.run import RunConfig, TrainConfig
from fastmaml.config.text import GlueConfig, IntentsConfig, TextConfig
from fastmaml.config.toml import read_toml

__all__ = [
    "GlueConfig",
    "IntentsConfig",
    "LoopConfig",
    "RunConfig",
    "TextConfig",
    "TrainConfig",
    "read_toml",
]
