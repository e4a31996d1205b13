"""Recorded functions as programs of the native module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmaml.engine.recording.native import Program, natively
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import Tape, record


def program_of(tape: Tape) -> Program:
    found = natively(tape)
    assert found is not None
    return found


def same_bits(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Program:
    """Hold the program of a function against its Python replay."""
    tape = cleaned(record(function, [x.clone() for x in inputs])[0])
    program, replay = program_of(tape), compiled(tape)
    with torch._C._AutoDispatchBelowAutograd():
        for _ in range(2):  # the first run looks at every value
            given = [x.clone() for x in inputs]
            found, expected = program(*given), replay(*inputs)
            for a, b in zip(found, expected, strict=True):
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
                assert torch.equal(a.isnan(), b.isnan())
                assert torch.equal(a.nan_to_num(), b.nan_to_num())
            assert all(map(torch.equal, given, inputs)), "inputs are the caller's"
    return program
