"""Trying something out, where only memory that ran out is no answer."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

SAYINGS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "aoti_torch_empty_strided(",  # how the native kernels make a result: nothing else fails there
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""Of errors that are a plain RuntimeError: only CUDA's allocator raises one of its own class."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on any device and backend."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(x in str(error) for x in SAYINGS)


def attempted(function: Callable[[], T]) -> tuple[str, T | None]:
    """Why the function cannot run, in a line, empty if it can; and what it returns.

    Called only for what was just seen to run on one task, so whatever is raised here is the
    transform's refusal and no error of the user's: it is reported by `MAML.explain`.
    """
    try:
        return "", function()
    except Exception as error:
        if is_out_of_memory(error):
            raise  # no refusal: less memory has to be used
        return in_a_line(error), None


def in_a_line(error: Exception) -> str:
    """The error in a line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def caught(code: types.CodeType, line: int, kind: type) -> str:
    """About one that a plain run does not raise (see `Sight.raised`)."""
    return f"{code.co_name}() catches a {kind.__name__} that is none of its own, in line {line}"
