"""Keeping torch.compile out of a meta-step, which is recorded as a whole.

Nothing here loads Dynamo: where it is not loaded, nothing was compiled.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch


def outside_compilers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which torch.compile around its caller does not look into."""
    if "torch._dynamo" not in sys.modules:
        return function
    method = getattr(function, "__func__", None)
    if method is None or torch.compiler.is_compiling():  # which warns of caches
        return torch.compiler.disable(function)
    return functools.partial(_disabled(method), function.__self__)  # type: ignore[attr-defined]


@functools.cache
def _disabled(method: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(method)


def as_written() -> AbstractContextManager[Any]:
    """A context in which models and functions that were compiled run as they were written.

    Compiled code has no second derivative, and could not be recorded.
    """
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
