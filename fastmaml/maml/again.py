"""Calls of a per-task function again and again, as long as what it depends on is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from fastmaml.engine.base import functorch
from fastmaml.engine.base.distributions import Parts
from fastmaml.engine.base.seeds import task_seeds
from fastmaml.engine.base.trees import flatten, unflatten
from fastmaml.engine.guards.modes_around import modes_around
from fastmaml.engine.guards.plans import environment
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.recording.arguments import FlatCall
from fastmaml.engine.recording.as_recorded import AsRecorded
from fastmaml.engine.recording.replay import Recording, replay
from fastmaml.ops import alone

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML


@final
class Again:
    """Replays a per-task function on some new tensors.

    Args:
        maml: whose model.
        held: the model's tensors and modes at that call.
        flat: a call of it, all tasks.
        recordings: of its chunks.
        last: how many leaves of the data, at their end, are new each time.
    """

    def __init__(
        self,
        maml: MAML,
        held: Inventory,
        flat: FlatCall,
        recordings: list[Recording],
        last: int,
    ) -> None:
        self._maml, self._held = maml, held
        self._live = [*held.parameters.values(), *held.buffers.values()]
        self._places = [_place(x) for x in self._live]
        self._device = held.device.type
        self._environment = environment(self._device)
        end = len(flat.own) - 3  # seeds, weights and cotangents follow the data
        self._flat, self._recordings = flat, recordings
        self._before, self._after = flat.own[: end - last], flat.own[end + 1 :]
        first = recordings[0]
        # Where in the results each leaf of the outputs is; the rest of the result is not wanted.
        numbers: list[Any] = list(range(sum(map(sum, _masks(first)))))
        self._outputs = first.layout.result(numbers).outputs
        kept = (*flat.shared, *self._before)
        self._tensors = [x for x in kept if isinstance(x, Tensor)]
        self._rest = [x for x in self._after if isinstance(x, Tensor)]
        self._alone = alone() if first.small else None

    def __call__(self, new: Sequence[Tensor]) -> Any:
        """What the function returns beside its loss; None where what it depends on has changed."""
        with self._maml._turns:
            return self._replayed(new) if self._holds() else None

    def _holds(self) -> bool:
        before, held = self._held, self._maml._stock.take(self._maml.module)
        return (
            functorch.maybe_current_level() is None  # else the whole way says what is wrong
            and held.parameters is before.parameters
            and held.buffers is before.buffers
            and held.training == before.training
            and list(map(_place, self._live)) == self._places
            and self._environment == environment(self._device)
            and not modes_around()
            and self._flat.program.depends.hold(held.call)
            and not any(recording.stale() for recording in self._recordings)
        )

    def _replayed(self, new: Sequence[Tensor]) -> Any:
        seeds = task_seeds(self._flat.tasks, self._flat.seeds.device)
        given = [x if _plain(x) else x.detach().contiguous() for x in new]
        if len(self._recordings) > 1:
            own = [*self._before, *given, seeds, *self._after]
            flat = replace(self._flat, own=own, seeds=seeds)
            return replay(flat.chunks(), self._recordings, own=True).outputs
        found: list[Tensor] = []

        def run() -> None:
            with AsRecorded():
                tensors = *self._tensors, *given, seeds, *self._rest
                found.extend(self._recordings[0].run(*tensors))

        run() if self._alone is None else self._alone(run)
        if isinstance(self._outputs, Parts):
            places: Any = self._outputs.tensors
            return self._outputs.like([found[i] for i in places])
        leaves, spec = flatten(self._outputs)
        return unflatten([found[i] if isinstance(i, int) else i for i in leaves], spec)


def _place(x: Tensor) -> tuple[Any, ...]:
    """Where its numbers lie, which ``x.data = y`` changes and its identity does not tell."""
    return x.data_ptr(), x.shape, x.stride(), x.dtype


def _plain(x: Tensor) -> bool:
    return x.is_contiguous() and not x.requires_grad


def _masks(recording: Recording) -> tuple[list[bool], list[bool]]:
    """Which leaves of the results are tensors."""
    return recording.layout.by_task[0], recording.layout.sums[0]
