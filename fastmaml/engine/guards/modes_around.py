"""Modes and hooks of the user's that are active around a call, and see what it does."""

from __future__ import annotations

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fastmaml.engine.guards.sight import root


def modes_around() -> str:
    """The name of one; mostly empty."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and root(getattr(hooks[0], "__module__", "")) != "fastmaml":
        return "context of hooks for saved tensors"
    if not torch._C._len_torch_function_stack() and not torch._C._len_torch_dispatch_stack():
        return ""
    for mode in (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()):
        kind = type(mode)
        if kind is not DeviceContext and root(kind.__module__) != "fastmaml":
            return kind.__name__
    return ""
