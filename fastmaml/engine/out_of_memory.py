"""Telling that memory ran out from everything else that goes wrong."""

from __future__ import annotations

import torch

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
