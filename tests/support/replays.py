"""Functions of tensors, recorded, cleaned and replayed: always the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import Operation, Tape, record

Function = Callable[..., Sequence[Tensor]]


def recorded(function: Function, *inputs: Tensor) -> Tape:
    with torch.no_grad():
        return record(function, [x.clone() for x in inputs])[0]


def names(tape: Tape) -> list[str]:
    return [s.function._opname for s in tape.steps if isinstance(s, Operation)]


def check(function: Function, *inputs: Tensor) -> Tape:
    """Record, clean and replay, twice on the same and once on other values; the cleaned tape."""
    tape = cleaned(recorded(function, *inputs))
    replay = compiled(tape)
    moved = [x + 1 if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        for values in (inputs, inputs, moved):
            before = [x.clone() for x in values]
            expected, found = function(*values), replay(*values)
            for x, y in zip(found, expected, strict=True):
                assert (x.shape, x.dtype) == (y.shape, y.dtype)
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
            assert all(torch.equal(x, y) for x, y in zip(values, before, strict=True))
    return tape
