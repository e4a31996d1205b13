"""What `plan_memory` is asked for, checked before any work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from fastmaml.gradients import GradientMethod
from fastmaml.integrations.transformers.adapters import Lora
from fastmaml.maml.settings import require_count
from fastmaml.measure.bench.sizes import bytes_of

_LEAST = 2**20


def memory_of(memory: Any) -> int:
    """Bytes of a device.

    Raises:
        ValueError: it is no size, text without a unit, or less than 1 MiB.
    """
    if isinstance(memory, str) and re.fullmatch(r"\s*[\d.]+(e\d+)?\s*", memory.lower()):
        raise ValueError(
            f"memory={memory!r} has no unit: write {memory.strip()}GiB if that is meant."
        )
    try:
        size = bytes_of(memory)
    except ValueError as error:
        raise ValueError(f"memory={memory!r}: {error}") from None
    if size < _LEAST:
        raise ValueError(
            f"memory={memory!r} is {size} bytes, and no device has less than 1 MiB: write a number "
            'and a unit, such as "80GiB".'
        )
    return size


def adapters_of(lora: Any) -> Lora | None:
    """The adapters that are meant.

    Raises:
        ValueError: it is neither a `Lora`, nor a rank, nor None.
    """
    if lora is None or isinstance(lora, Lora):
        return lora
    if not isinstance(lora, int):
        raise ValueError(
            f"lora={lora!r} is a {type(lora).__name__}: give a rank such as 8, a Lora, or None "
            "where everything adapts."
        )
    return Lora(rank=lora)


def methods_of(methods: Any) -> tuple[GradientMethod, ...]:
    """One or several gradient methods.

    Raises:
        ValueError: there are none, or one is none.
    """
    if isinstance(methods, GradientMethod):
        return (methods,)
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise ValueError(f"methods={methods!r}: give gradient methods such as [Checkpointed()].")
    found = tuple(methods)
    for method in found:
        if not isinstance(method, GradientMethod):
            raise ValueError(
                f"methods has {method!r}, which is no gradient method: give such as "
                "fastmaml.gradients.Checkpointed()."
            )
    if not found:
        raise ValueError("methods is empty: give at least one gradient method.")
    return found


def require_dtype(dtype: Any) -> None:
    """Raise ValueError unless weights may have it."""
    if not isinstance(dtype, torch.dtype):
        raise ValueError(
            f"dtype={dtype!r} is a {type(dtype).__name__}: give one of torch's, such as "
            "torch.bfloat16."
        )
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype}: give a floating-point one.")


def require_tokens(config: Any, tokens: int) -> None:
    """Raise ValueError where rows are longer than the model takes."""
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and tokens > longest:
        raise ValueError(f"tokens={tokens}: the model takes at most {longest}.")


def require_chunk(tasks: int, tasks_at_once: int | None) -> None:
    """Raise ValueError unless so many tasks can run at a time."""
    if tasks_at_once is not None and require_count("tasks_at_once", tasks_at_once, 1) > tasks:
        raise ValueError(
            f"tasks_at_once={tasks_at_once} with tasks={tasks}: no more can run at once than there "
            "are."
        )
