"""Modes of the user's that are active around a call, and see its operations."""

from __future__ import annotations

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fastmaml.engine.sight import root


def modes_around() -> str:
    """The name of one; mostly empty."""
    if not torch._C._len_torch_function_stack() and not torch._C._len_torch_dispatch_stack():
        return ""
    for mode in (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()):
        kind = type(mode)
        if kind is not DeviceContext and root(kind.__module__) != "fastmaml":
            return kind.__name__
    return ""
