"""What a launcher asks of its arguments before a pointer is taken; errors name the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .launch import interpreted

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Sizes are 32-bit in a kernel, and a tile may reach beyond them.
LIMIT = 2**30


def tensors(op: str, kernel: Any, ranks: dict[str, int], **named: torch.Tensor | None) -> None:
    """Ranks as given; dtype, device and tasks as the first tensor's."""
    (first, one), *_ = named.items()
    assert one is not None
    for name, x in named.items():
        if x is None:
            continue
        if x.dim() != ranks[name]:
            raise ValueError(
                f"{op}: {name} has shape {list(x.shape)}, not {ranks[name]} dimensions."
            )
        if x.dtype != one.dtype or x.device != one.device:
            raise ValueError(
                f"{op}: {name} is {x.dtype} on {x.device}, {first} {one.dtype} on {one.device}."
            )
        if x.shape[0] != one.shape[0]:
            raise ValueError(f"{op}: {name} has {x.shape[0]} tasks, {first} has {one.shape[0]}.")
    if one.dtype not in DTYPES:
        raise ValueError(
            f"{op}: {first} is {one.dtype}, not float32, float64, float16 or bfloat16."
        )
    if one.device.type not in ("cuda", "meta") and not interpreted(kernel):
        raise ValueError(
            f"{op}: {first} is on {one.device}, and Triton kernels run on a CUDA device. Choose "
            "the backend cpp or reference, or set TRITON_INTERPRET=1 before Python starts."
        )


def sizes(op: str, what: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """``found`` must equal ``wanted``; ``what`` names them."""
    if list(found) != list(wanted):
        raise ValueError(f"{op}: {what} is {list(found)}, not {list(wanted)}.")


def limits(op: str, **named: int) -> None:
    """Each size is counted with 32 bits within a task (offsets are 64-bit)."""
    for name, size in named.items():
        if size >= LIMIT:
            raise ValueError(f"{op}: {size} {name} a task; below 2^30 are supported.")
