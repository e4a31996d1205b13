"""The configurations: frozen dataclasses for the flags, the TOML file and the checkpoint."""

from fastmaml.training.config.images import ImagesConfig
from fastmaml.training.config.instructions import InstructionsConfig
from fastmaml.training.config.loop import LoopConfig
from fastmaml.training.config.policy import PolicyConfig
from fastmaml.training.config.run import RunConfig, TrainConfig
from fastmaml.training.config.table import TableConfig
from fastmaml.training.config.text import GlueConfig, IntentsConfig, LanguageConfig, TextConfig
from fastmaml.training.config.toml import read_toml

__all__ = [
    "GlueConfig",
    "ImagesConfig",
    "InstructionsConfig",
    "IntentsConfig",
    "LanguageConfig",
    "LoopConfig",
    "PolicyConfig",
    "RunConfig",
    "TableConfig",
    "TextConfig",
    "TrainConfig",
    "read_toml",
]
