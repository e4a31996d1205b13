"""What PyTorch's versions differ in."""

from __future__ import annotations

import torch

SINCE = {"grid_sample": (2, 12)}
"""Versions from which on an operation has a second derivative."""


def differentiable_twice(name: str) -> bool:
    """Whether the installed PyTorch has it."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= SINCE[name]
