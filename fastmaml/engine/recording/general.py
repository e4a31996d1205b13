"""Recordings of one meta-step at several sizes, made into one for other sizes, too.

Shots, lengths and image counts vary from call to call; the model does not. What was recorded at
some sizes differs then in numbers alone, and each of those is a constant or follows from the sizes
(`fitted`): a recording for other sizes is the same operations with other numbers.

That the model's own code does nothing else at these sizes, the caller has to know
(`Program.sizes_known`). What PyTorch's does is looked at when a recording runs for the first time:
every result has to lie in memory as foretold.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import is_out_of_memory
from fastmaml.engine.base.equality import same_values
from fastmaml.engine.base.sizes import Sizes, Variables, fitted
from fastmaml.engine.recording.arguments import Layout
from fastmaml.engine.recording.as_recorded import AsRecorded
from fastmaml.engine.recording.optimize import of_numbers_alone, operation_count
from fastmaml.engine.recording.replay import ONE_THREAD_ELEMENTS, Recording, Uses
from fastmaml.engine.recording.replay_code import Replay, compiled_for_sizes
from fastmaml.engine.recording.tape import Geometry, Operation, Ref, Tape, View

LEAST_SAMPLES = 3
"""Recordings that a general one is made of: a straight line through two is no discovery."""

MOST_SAMPLES = 6
"""If those of so many sizes have nothing in common, others are not expected to."""


MAX_SIZES = 512
"""For which recordings are kept ready: little but their numbers is their own."""


class Sample(NamedTuple):
    """A recording at some sizes.

    Attributes:
        sizes: of all tensors of the call.
        tape: cleaned, but with everything computed at each replay.
        layout: of the results.
    """

    sizes: Sizes
    tape: Tape
    layout: Layout


class _NotAlikeError(Exception):
    """Two recordings differ in more than numbers, or a number follows no formula."""


@final
class General:
    """A recording at any sizes that vary as those of its samples.

    Args:
        samples: at least `LEAST_SAMPLES`.

    Raises:
        _NotAlikeError: they have no general form.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        first = samples[0]
        self.variables = Variables.of([s.sizes for s in samples])
        values = [self.variables.values(s.sizes) or () for s in samples]
        if any(s.layout != first.layout for s in samples):
            raise _NotAlikeError
        self.layout = first.layout
        self.tape = _Merge(values).tape([s.tape for s in samples])
        ahead = of_numbers_alone(self.tape)
        self._made, self._forms = compiled_for_sizes(self.tape, ahead, self._look_at)
        self._operations, self._elements = operation_count(self.tape), 0

    def at(self, sizes: Sizes, tensors: Sequence[Tensor], uses: Uses) -> Recording | None:
        """The recording for these sizes; None where what it does is not what was foretold.

        Args:
            sizes: of all tensors of the call.
            tensors: with which it is tried.
            uses: of all of these.
        """
        values = self.variables.values(sizes)
        if values is None:
            return None
        given = [form.at(values) for form in self._forms]
        if None in given:
            return None
        try:
            with AsRecorded():
                run, tried = self._made(*given)
                self._elements = 0
                ready = _Ready(run, tensors, tried(*tensors))
        except _NotAlikeError:
            return None
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return None  # an operation that does not take such sizes
        small = self._elements < ONE_THREAD_ELEMENTS * self._operations
        return Recording(ready, self.layout, self._operations, small, uses=uses)

    def _look_at(
        self, x: Tensor, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        """Raise unless a result lies in memory as foretold; else count its numbers."""
        if x.shape != size or x.stride() != stride or x.dtype is not dtype:
            raise _NotAlikeError
        self._elements += x.numel()


@final
class _Ready:
    """A replay whose results for some tensors are there already, and handed out once."""

    def __init__(self, run: Replay, tensors: Sequence[Tensor], results: list[Tensor]) -> None:
        self._run = run
        self._first: tuple[Sequence[Tensor], list[Tensor]] | None = (tensors, results)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        first, self._first = self._first, None
        if first is not None and all(map(operator.is_, first[0], tensors)):
            return first[1]
        return self._run(*tensors)


@final
class Family:
    """The recordings of one meta-step at different sizes."""

    def __init__(self) -> None:
        self.uses = Uses(calls=1)  # so that the first one that follows is checked
        self._samples: list[Sample] = []
        self._general: General | None = None
        self._made: OrderedDict[Sizes, Recording] = OrderedDict()
        self._hopeless = False
        self._added = 0

    def learns(self) -> bool:
        """Whether another sample may be of use."""
        return not self._hopeless

    def young(self) -> bool:
        """Whether so few are known that others are to be expected."""
        return self._added < MOST_SAMPLES

    def add(self, sample: Sample) -> None:
        """Learn from a recording."""
        self._added += 1
        self._general = None
        self._made.clear()
        self._samples = [*self._samples, sample][-MOST_SAMPLES:]
        if len(self._samples) < LEAST_SAMPLES:
            return
        try:
            self._general = General(self._samples)
        except _NotAlikeError:
            if len(self._samples) == MOST_SAMPLES:
                self._samples, self._hopeless = [], True

    def at(self, sizes: Sizes, tensors: Sequence[Tensor]) -> Recording | None:
        """A recording for these sizes, if one can be foretold."""
        if self._general is None:
            return None
        found = self._made.get(sizes)
        if found is None:
            found = self._general.at(sizes, tensors, self.uses)
            if found is None:
                return None
            self._made[sizes] = found
            if len(self._made) > MAX_SIZES:
                self._made.popitem(last=False)
        self._made.move_to_end(sizes)
        return found


class _Merge:
    """Several trees of one shape made into one, with forms where they differ."""

    def __init__(self, values: Sequence[Sizes]) -> None:
        self.values = values
        self._known: dict[Any, Any] = {}

    def tape(self, tapes: Sequence[Tape]) -> Tape:
        """The tape with forms for numbers."""
        first = tapes[0]
        same = [(t.inputs, len(t.steps), t.outputs, t.owner, t.written) for t in tapes]
        if any(x != same[0] for x in same) or any(t.fixed for t in tapes):
            raise _NotAlikeError
        if any(t.constants.keys() != first.constants.keys() for t in tapes):
            raise _NotAlikeError
        for value, x in first.constants.items():
            for other in (t.constants[value] for t in tapes[1:]):
                alike = x is other or (x.stride() == other.stride() and same_values(x, other))
                if not alike:
                    raise _NotAlikeError
        steps: list[Any] = [self.step(s) for s in zip(*(t.steps for t in tapes), strict=True)]
        geometry = [self.geometry(g) for g in zip(*(t.geometry for t in tapes), strict=True)]
        return replace(first, steps=steps, geometry=geometry)

    def step(self, steps: Sequence[Any]) -> Any:
        """A step of each."""
        first = steps[0]
        if any(isinstance(s, Operation) is not isinstance(first, Operation) for s in steps):
            raise _NotAlikeError
        if not isinstance(first, Operation):
            self.same([(value, view.source) for value, view in steps])
            views = [view for _, view in steps]
            size, stride = (self.merged([getattr(v, n) for v in views]) for n in ("size", "stride"))
            offset = self.merged([v.offset for v in views])
            return first[0], View(first[1].source, size, stride, offset)
        self.same([(s.function, s.results) for s in steps])
        arguments = self.merged([s.arguments for s in steps])
        return first._replace(
            arguments=arguments, keywords=self.merged([s.keywords for s in steps])
        )

    def geometry(self, geometries: Sequence[Geometry]) -> Geometry:
        """Of one value."""
        self.same([g.dtype for g in geometries])
        size, stride = (
            self.merged([getattr(g, n) for g in geometries]) for n in ("size", "stride")
        )
        return Geometry(size, stride, geometries[0].dtype)

    def same(self, found: Sequence[Any]) -> None:
        """Raise unless all are equal."""
        if any(x != found[0] for x in found):
            raise _NotAlikeError

    def merged(self, trees: Sequence[Any]) -> Any:
        """Arguments of operations."""
        first = trees[0]
        if any(type(x) is not type(first) for x in trees):
            raise _NotAlikeError
        if isinstance(first, Ref):
            self.same(trees)
            return first
        if isinstance(first, list | tuple):
            if any(len(x) != len(first) for x in trees):
                raise _NotAlikeError
            found = [self.merged(x) for x in zip(*trees, strict=True)]
            return found if isinstance(first, list) else tuple(found)
        if isinstance(first, dict):
            self.same([list(x) for x in trees])
            return {k: self.merged([x[k] for x in trees]) for k in first}
        if type(first) in (int, float):
            return self.number(tuple(trees))
        self.same(trees)
        return first

    def number(self, numbers: tuple[Any, ...]) -> Any:
        """A number, or the form that it has."""
        key = (type(numbers[0]), numbers)
        if key not in self._known:
            found = fitted(numbers, self.values)
            if found is None:
                raise _NotAlikeError
            self._known[key] = found
        return self._known[key]
