"""Zeros without memory, which forward mode has for tangents: what dispatch modes must know."""

from __future__ import annotations

from typing import Any

import torch

_RECURSES = {torch.ops.aten.mul.Scalar, torch.ops.aten.add.Scalar}


def with_memory(func: Any, args: Any) -> Any:
    """The arguments of an operator, with memory where it would not return without.

    Under a dispatch mode torch calls these two again and again for such a tensor, until the
    interpreter crashes (seen in 2.13).
    """
    if func in _RECURSES and args[0]._is_zerotensor():
        zeros = torch.zeros(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        return (zeros, *args[1:])
    return args
