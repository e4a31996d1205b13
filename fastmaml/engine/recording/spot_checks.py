"""Running a meta-step eagerly now and then, to see that its recording still says the same.

What a recording depends on is guarded (`dependencies`). This is the net below: calls 2, 4, 8, ...
of a recording also run eagerly, for one chunk of tasks. So whatever was not foreseen stays hidden
for at most as many calls as there were before it, at the price of log2(calls) eager chunks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import is_out_of_memory
from fastmaml.engine.base.errors import StaleRecordingError
from fastmaml.engine.base.held_output import HeldOutput
from fastmaml.engine.base.seeds import foreign_state
from fastmaml.engine.recording.arguments import FlatCall, Layout, laid_out
from fastmaml.engine.recording.as_recorded import AsRecorded
from fastmaml.engine.recording.tape import UncapturableError

ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-4}
"""Differences up to this share of a result's norm are no reason to look further."""

UNSTEADY = 4.0
"""Runs of what never adds in the same order differ by so many times what two of them did."""

STEADY = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Where they differ by more of a result's norm, it is no order of adding, but a draw, say."""

COARSE = 2e-2
"""The same for narrower dtypes."""

RECHECK_FACTOR = 2.0
"""So many times `STEADY` may they differ where the other run is unsteady too: what passed once
must not fail later."""

TRIES = 4
"""Replays, or new recordings, of which one has to agree where no run repeats another: at a kink
each may tip over."""


_log = logging.getLogger("fastmaml")


@dataclass(frozen=True)
class Deviation:
    """Where two runs of one meta-step differ most.

    Attributes:
        of: which result, in words.
        size: the norm of the difference, as a share of the result's norm (for a gradient, of all
            gradients').
    """

    of: str
    size: float


def due(calls: int) -> bool:
    """Whether this call of a recording, counted from 1, is to be checked."""
    return calls > 1 and calls & (calls - 1) == 0


def same_each_time(flat: FlatCall) -> bool:
    """Whether runs give the same bits; on a GPU some kernels add in another order each time."""
    return flat.seeds.device.type == "cpu"


def spot_check(
    flat: FlatCall, layout: Layout, run: Callable[..., list[Tensor]], record: Callable[[], Any]
) -> None:
    """Raise unless a recording gives what the eager run gives.

    Where the two differ by more than rounding, a new recording decides: at a kink (max-pooling,
    ReLU) rounding alone can tip an element over, and then the two recordings agree. Where runs
    differ each time, so do recordings: one of `TRIES` has to agree. Where the eager run finds no
    memory, a warning says so.

    Args:
        flat: one chunk's arguments.
        layout: of the results.
        run: the recording.
        record: makes another one, of the same arguments: its function.

    Raises:
        StaleRecordingError: it is not what the model computes now.
    """
    tensors = flat.tensors()
    with AsRecorded():
        found = run(*tensors)
        twice = found if same_each_time(flat) else run(*tensors)
    state = foreign_state()
    try:
        # What the model prints was printed when it was recorded.
        with torch.enable_grad(), HeldOutput():
            expected, now = laid_out(flat.run(tensors))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _log.warning(
            "this call of a recording could not be checked: an eager run beside it needs more "
            "memory than there is; spot_checks=False asks for none"
        )
        return
    if foreign_state() != state:
        _refuse("it now draws random numbers from Python or numpy")
    if now != layout:
        _refuse("its results are other ones")
    worst = difference(found, expected, layout, flat, twice, RECHECK_FACTOR)
    if worst is None:
        return
    why = ""
    for _ in range(1 if same_each_time(flat) else TRIES):
        try:
            again = record()
        except UncapturableError as error:
            why = f", and {error}"
            continue
        why = ""
        with AsRecorded():
            anew = again(*tensors)
        if difference(found, anew, layout, flat, twice, RECHECK_FACTOR) is None:
            return
    _refuse(f"{worst.of} is off by {worst.size:.1e} of its norm{why}")


def _refuse(what: str) -> NoReturn:
    raise StaleRecordingError(
        f"the recording of this meta-step is no longer what the model computes: {what}. Something "
        "that the model, the loss or the rule depends on changed without being seen. Calls since "
        'the last check may have had the same fault. Use executor="eager" for this model, or make '
        "what changes an attribute, an argument or a buffer; and please report it."
    )


def difference(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    layout: Layout,
    flat: FlatCall,
    again: Sequence[Tensor],
    steady: float = 1.0,
) -> Deviation | None:
    """The largest one beyond rounding.

    Args:
        found: of a recording.
        expected: what it should be.
        layout: of both.
        flat: the arguments.
        again: of the same recording and arguments: where it differs from `found`, by more than
            rounding as under Adam, a few times as much is no reason to look further. Losses and
            outputs have one measure of it, and gradients another: of few numbers two runs may
            give the same by chance.
        steady: times `STEADY`, how much that may be.
    """
    whole = _norm([_finite(y) for y in expected[layout.split :]])
    noise = {False: 0.0, True: 0.0}
    sizes: list[float] = []
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        if x.shape != y.shape or x.dtype != y.dtype:
            return Deviation(_name(i, layout, flat), torch.inf)
        scale = max(_norm([_finite(y)]), whole if i >= layout.split else 0.0)
        sizes.append(_share(_norm([_gap(x, y)]), scale))
        if found is not again and sizes[-1]:
            other = _share(_norm([_gap(x, again[i])]), scale)
            noise[i >= layout.split] = max(noise[i >= layout.split], other)
    worst = None
    for i, (size, y) in enumerate(zip(sizes, expected, strict=True)):
        by_order = size <= UNSTEADY * noise[i >= layout.split]
        if by_order and size <= steady * STEADY.get(y.dtype, COARSE):
            continue
        rounding = ROUNDING.get(
            y.dtype, COARSE if y.is_floating_point() else ROUNDING[torch.float64]
        )
        if not size <= rounding and (worst is None or size > worst.size):
            worst = Deviation(_name(i, layout, flat), size)
    return worst


def _share(error: float, scale: float) -> float:
    return 0.0 if error == 0 else error / scale if scale else torch.inf


def _gap(x: Tensor, y: Tensor) -> Tensor:
    """The difference's size; 0 where both are the same or NaN, infinite where one alone is NaN."""
    if not x.is_floating_point() and not x.is_complex():
        return (x != y).double()
    x, y = _wide(x), _wide(y)
    gap = (x - y).abs()
    gap = torch.where(gap.isnan(), torch.full_like(gap, torch.inf), gap)
    return torch.where((x == y) | (x.isnan() & y.isnan()), torch.zeros_like(gap), gap)


def _finite(x: Tensor) -> Tensor:
    x = _wide(x)
    return torch.where(x.isfinite(), x, torch.zeros_like(x))


def _wide(x: Tensor) -> Tensor:
    """For what is not defined on all dtypes; of what is no number, too."""
    return x if x.is_complex() else x.double()


def _norm(tensors: Sequence[Tensor]) -> float:
    sizes = [x.abs().double() for x in tensors if x.numel()]
    largest = max((float(x.max()) for x in sizes), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * sum(float((x / largest).square().sum()) for x in sizes) ** 0.5


def _name(i: int, layout: Layout, flat: FlatCall) -> str:
    """Which result, in words."""
    if i < layout.split:
        return "the loss" if i == 0 else "an output of the model"
    names = [n for part in flat.meta() for n in part]
    reached = [n for n, tensor in zip(names, layout.sums[0], strict=True) if tensor]
    return f"the meta-gradient of {reached[i - layout.split]}"
