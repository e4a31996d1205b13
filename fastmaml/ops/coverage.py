"""What a backend covers, asked before an op is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastmaml.ops import _load
from fastmaml.ops._load import kernels

WIDEST = {("triton", "task_attention"): 128, ("shapes", "task_attention"): 128}
"""Of a backend and an op: the largest last dimension that there are kernels for, if not any."""


def covers(op: str, backend: str, tensors: Iterable[Tensor | None]) -> bool:
    """Whether `backend` has kernels of `op` for these tensors, which must be alike.

    Args:
        op: the name of a public op.
        backend: not "reference".
        tensors: its floating-point arguments; None is passed over.
    """
    found = kernels(backend)
    given = [x for x in tensors if x is not None]
    if op not in found.families or not all(isinstance(x, Tensor) for x in given):
        return False
    kinds = {(x.device, x.dtype) for x in given}
    if len(kinds) != 1:
        return False
    widest = WIDEST.get((backend, op))
    if widest is not None and any(x.shape[-1] > widest for x in given):
        return False
    device, dtype = kinds.pop()
    return device.type in found.devices and dtype in found.dtypes


def alone() -> Callable[[Callable[[], None]], None] | None:
    """``alone(body)`` calls ``body()``, whose operations then stay on the calling thread.

    None where the native module is not built.
    """
    module = _load.native_module()
    return None if module is None else module.alone


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether there is no NaN and no infinity among them.

    False where the native module cannot tell: it is not built, or some are no plain tensors of
    float32 or float64 on the CPU.
    """
    if _load.native_module() is None or not all(type(x) is Tensor and x.is_cpu for x in tensors):
        return False
    return bool(torch.ops.fastmaml.all_finite(tensors))


def native_programs() -> Any:
    """`make_program` and what goes with it (`engine.recording.native`).

    None where the native module is not built.
    """
    return _load.native_module()


def program_peak(func: Any, args: Any) -> int:
    """The most bytes that such a call has alive of what it makes, where it runs a program."""
    if getattr(func, "_opname", "") != "replay" or func.namespace != "fastmaml":
        return 0
    return int(_load.native_module().program_peak(args[0]))


def parallel_region() -> Callable[[Callable[[int], None], int], None] | None:
    """``region(body, count)`` calls ``body(0), ..., body(count - 1)`` on all of torch's threads.

    An operation that `body` calls runs on its own thread alone. None where the native module is
    not built.
    """
    module = _load.native_module()
    return None if module is None else module.parallel_region
