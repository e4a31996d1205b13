"""learn2learn's interface (that of its release 0.2.0) on today's Python and PyTorch.

Change ``import learn2learn as l2l`` to ``import fastmaml.compat.learn2learn as l2l``.
"""

from typing import NoReturn

from fastmaml.compat.learn2learn import algorithms, data, nn, optim, utils, vision
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
    "update_module",
    "utils",
    "vision",
]


def __getattr__(name: str) -> NoReturn:
    hint = " (learn2learn's gym and text are left out)" if name in ("gym", "text") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
