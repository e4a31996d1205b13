"""Cloning, detaching and updating modules; small helpers of training scripts."""

import importlib
from typing import Any

from fastmaml.compat.learn2learn.utils.distributions import clone_distribution, detach_distribution
from fastmaml.compat.learn2learn.utils.modules import clone_module, detach_module, update_module
from fastmaml.compat.learn2learn.utils.scripts import accuracy, flatten_config
from fastmaml.compat.learn2learn.utils.tensors import (
    clone_named_parameters,
    clone_parameters,
    magic_box,
)

__all__ = [
    "accuracy",
    "clone_distribution",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "detach_distribution",
    "detach_module",
    "flatten_config",
    "magic_box",
    "update_module",
]


def __getattr__(name: str) -> Any:
    if name == "lightning":  # which needs Lightning: imported where it is used
        return importlib.import_module(f"{__name__}.lightning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
