"""Programs of the native module take nothing on trust, neither tensors nor their own steps."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from outcomes import require
from problems import tensor
from programs import program_of
from torch import Tensor

from fastmaml.engine.recording.native import LEAST_STEPS, natively
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.tape import Tape, record
from fastmaml.ops.coverage import native_programs


@pytest.fixture(autouse=True)
def _native() -> None:
    require("cpp")


def _tape() -> Tape:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        return [x * y + x - y * 2 + 1]

    return cleaned(record(function, [tensor(3, 4, seed=1), tensor(3, 1, seed=2)])[0])


@pytest.mark.parametrize(
    "given",
    [
        [(4, 4), (3, 1)],
        [(3, 4), (1, 3)],
        [(3, 4)],
        [(3, 4), (3, 1), (3, 1)],
    ],
    ids=str,
)
def test_tensors_of_other_sizes_are_refused(given: Any) -> None:
    program = program_of(_tape())
    with pytest.raises(RuntimeError, match="program"):
        program(*[torch.zeros(s, dtype=torch.float64) for s in given])


def test_other_dtypes_strides_and_devices_are_refused() -> None:
    program = program_of(_tape())
    x, y = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    program(x, y)
    for wrong in (x.float(), x.t().contiguous().t(), x.to("meta")):
        with pytest.raises(RuntimeError, match="of a program has"):
            program(wrong, y)


def _steps(tape: Tape) -> Any:
    """What a program of the tape is made from."""
    found: list[Any] = []

    class Module:
        has_kernel = staticmethod(native_programs().has_kernel)
        drop_program = staticmethod(lambda number: None)

        @staticmethod
        def make_program(*given: Any) -> int:
            found.append(given)
            return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmaml.engine.recording.native.native_programs", lambda: Module)
        assert natively(tape) is not None
    return found[0]


def _changed(x: Any, place: tuple[int, ...], new: Any) -> Any:
    if not place:
        return new
    parts = list(x)
    parts[place[0]] = _changed(parts[place[0]], place[1:], new)
    return tuple(parts) if isinstance(x, tuple) else parts


@pytest.mark.parametrize(
    ("place", "new"),
    [
        ((1, 0), 99),  # an input
        ((2, 0), -2),  # an output
        ((3, 0, 1), 12),  # a kind of pointwise step
        ((3, 0, 2), 99),  # its operand
        ((3, 0, 7), [300, 4]),  # its loops
        ((3, 0, 8), [4000, 1]),
        ((3, 0, 10), [4]),
        ((3, 0, 10), [-4, 1]),
        ((3, 0, 11), [77]),  # what is over
    ],
)
def test_programs_that_point_elsewhere_are_refused(place: tuple[int, ...], new: Any) -> None:
    values, inputs, outputs, steps = _steps(_tape())
    module = native_programs()
    module.drop_program(module.make_program(values, inputs, outputs, steps))
    with pytest.raises(RuntimeError, match=r"program|step"):
        module.make_program(*_changed([values, inputs, outputs, steps], place, new))


def _call_tape() -> Tape:
    def function(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        for _ in range(LEAST_STEPS):
            x = torch.ops.fastmaml.task_linear(x, w, b, 1)[0]
        return [x]

    inputs = [tensor(2, 3, 4, seed=1), tensor(2, 4, 4, seed=2), tensor(2, 4, seed=3)]
    return cleaned(record(function, inputs)[0])


@pytest.mark.parametrize(
    ("place", "new"),
    [
        ((3, 0, 1), "task_layer_norm"),
        ((3, 0, 1), "task_nothing"),
        ((3, 0, 3, 0, 0), 2),  # the type of an argument
        ((3, 0, 3, 3, 0), 5),
        ((3, 0, 3), []),
        ((3, 0, 3, 1, 2), 99),  # a tensor
        ((3, 0, 4), [3]),  # results
        ((3, 0, 5), True),
    ],
)
def test_kernels_are_given_what_they_take(place: tuple[int, ...], new: Any) -> None:
    values, inputs, outputs, steps = _steps(_call_tape())
    module = native_programs()
    module.drop_program(module.make_program(values, inputs, outputs, steps))
    with pytest.raises(RuntimeError, match="a program"):
        module.make_program(*_changed([values, inputs, outputs, steps], place, new))


def test_programs_go_with_what_made_them() -> None:
    program = program_of(_tape())
    number, module = program.number, native_programs()
    assert module.program_peak(number) > 0
    del program
    gc.collect()
    with pytest.raises(RuntimeError, match=f"no program {number}"):
        module.program_peak(number)
