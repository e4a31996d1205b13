"""learn2learn's interface (that of its release 0.2.0) on today's Python and PyTorch.

Change ``import learn2learn as l2l`` to ``import fastmaml.compat.learn2learn as l2l``.
"""

import importlib
import sys
from typing import Any

from fastmaml.compat.learn2learn import algorithms, data, nn, optim, text, utils, vision
from fastmaml.compat.learn2learn.utils import (
    accuracy,
    clone_distribution,
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_distribution,
    detach_module,
    flatten_config,
    magic_box,
    update_module,
)

__version__ = "0.2.0"

__all__ = [
    "accuracy",
    "algorithms",
    "clone_distribution",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "data",
    "detach_distribution",
    "detach_module",
    "flatten_config",
    "magic_box",
    "nn",
    "optim",
    "text",
    "update_module",
    "utils",
    "vision",
]


if "gymnasium" in sys.modules:  # a script may make our environments by name next
    importlib.import_module(f"{__name__}.gym")


def __getattr__(name: str) -> Any:
    if name == "gym":  # which needs gymnasium: imported where it is used
        return importlib.import_module(f"{__name__}.gym")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
