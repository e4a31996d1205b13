"""Tensors that are made while a function is recorded, and seem to come from outside.

So do the numbers of a list (``torch.tensor([1.0, 2.0])``), which are the same at every call; but
also what another thread computed, or was made of a tensor's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fastmaml.engine.base.equality import same_values
from fastmaml.engine.recording.tape import Tape, UncapturableError

_MOVED = 1 - 2**-7
"""Towards zero, as probabilities and indices may end where they are."""


def require_constants(
    tape: Tape,
    again: Callable[[Sequence[Tensor]], Tape],
    inputs: Sequence[Tensor],
    known: Iterable[Tensor],
) -> None:
    """Raise UncapturableError where such a tensor depends on the inputs.

    Args:
        tape: of the function.
        again: records it once more, where there is such a tensor.
        inputs: those of the first recording.
        known: tensors that were there before.
    """
    if not tape.constants:
        return
    there = {_memory(x) for x in known if x.layout is torch.strided}
    first = list(tape.constants.values())
    if all(_memory(x) in there for x in first):
        return
    second = list(again([_moved(x) for x in inputs]).constants.values())
    if len(first) != len(second) or not all(map(_same, first, second)):
        raise UncapturableError(
            "a tensor that it makes without an operation of PyTorch's depends on its inputs (in "
            "another thread, say)"
        )


def _moved(x: Tensor) -> Tensor:
    """Other numbers that may well stand there: classes and words stay what there are such of."""
    if x.is_floating_point() or x.is_complex():
        return x * _MOVED
    return ~x if x.dtype is torch.bool else x - (x > 0).to(x.dtype)


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata if torch._C._has_storage(x) else 0


def _same(x: Tensor, y: Tensor) -> bool:
    return _memory(x) == _memory(y) or same_values(x, y)
