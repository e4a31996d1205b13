"""Watching a small meta-step run: how many bytes it needs, eagerly and from a recording."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmaml.engine.base.storages import parts
from fastmaml.engine.base.zero_tensors import with_memory
from fastmaml.engine.memory.events import Event, Place, to_compute, without_repeats
from fastmaml.engine.recording.memory_reuse import IN_PLACE


class Peak(NamedTuple):
    """Bytes alive at a time, and those of them in storages of a marked size."""

    size: int
    marked: int


class Meter(TorchDispatchMode):
    """Follows what operators make, until it is let go, and what reads it.

    Storages alive before the block count as nothing: parameters and episodes. Scratch space inside
    an operator is not seen.

    Args:
        marked: sizes in bytes of storages that a larger run would not have more of.
        scale: how many times larger it is in all else; the peak is that of the larger run.
        compares: whether to note what operators are given, which takes time and `replayed` needs.

    Attributes:
        live: bytes alive now, of what the block made.
        peak: what was alive after the operator that needs most.
        events: in order.
        sizes: bytes of each storage, 0 for one from outside.
    """

    def __init__(
        self, marked: Collection[int] = (), scale: float = 1.0, compares: bool = True
    ) -> None:
        super().__init__()
        self.marked, self.scale, self.compares = frozenset(marked), scale, compares
        self.live = self._live_marked = 0
        self.peak = Peak(0, 0)
        self.events: list[Event] = []
        self.sizes: list[int] = []
        self._numbers: dict[int, int] = {}
        self._alive: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the default loads all of torch.compile, for most of a second, to keep it off."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, and note it."""
        kwargs, args = kwargs or {}, with_memory(func, args)
        fresh = func is torch.ops.aten.lift_fresh.default  # of a tensor that no operator made
        given = () if fresh else (*args, *kwargs.values())
        reads = [self.number(x, 0) for x in _tensors(given)]
        result = func(*args, **kwargs)
        known = len(self.sizes)
        made = [self.number(x) for x in _tensors((result,))]
        makes = [x for x in made if x >= known]
        mutates = func._schema.is_mutable
        if makes or mutates:
            alone = fresh or mutates or not self.compares
            named = None if alone else self._named((args, tuple(kwargs.items())))
            self.events.append(Event(func, reads, makes, mutates, named))
            self.peak = self._larger(self.peak, Peak(self.live, self._live_marked))
        return result

    def _named(self, tree: Any) -> Any:
        """The arguments, as something to compare; None if some tensor has no memory."""
        if isinstance(tree, tuple | list):
            found = [self._named(x) for x in tree]
            return None if any(x is None for x in found) else tuple(found)
        if not isinstance(tree, Tensor):
            return (type(tree), repr(tree))  # 1, 1.0 and True are equal, and are not the same
        if tree.is_nested or not any(part is tree for part in parts(tree)):
            return None
        begin = int(tree.storage_offset())
        return Place(self.number(tree, 0), begin, (*tree.shape,), (*tree.stride(),), tree.dtype)

    def number(self, x: Tensor, size: int | None = None) -> int:
        """The number of a tensor's storage, which counts `size` bytes (None: its own) if new."""
        storage = x.untyped_storage()
        key = storage._cdata
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.sizes)
            own = storage.nbytes() if size is None else size
            self.sizes.append(own)
            self._count(own, own)
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, own))
        return found

    def _count(self, size: int, change: int) -> None:
        self.live += change
        self._live_marked += change * (size in self.marked)

    def _forget(self, key: int, size: int) -> None:
        self._count(size, -size)
        del self._numbers[key], self._alive[key]

    def replayed(self, results: Iterable[Tensor]) -> tuple[list[int], Peak]:
        """Bytes alive before each event and at the end, and the peak, in a replay of the events.

        It lets go of each value after its last use. Equal calls are made once where the first
        result is still there, what nothing uses is not computed, what depends on nothing from
        outside was computed before, and sums may overwrite an operand, all as in `flat.cleaned`.

        Args:
            results: what is wanted, alive.
        """
        kept = {self.number(x) for x in results}
        shared, same = without_repeats(self.events, kept)
        kept = {same.get(x, x) for x in kept}
        events = to_compute(shared, kept)
        last = {x: i for i, e in enumerate(events) if e for x in (*e.reads, *e.makes)}
        mine = {x for e in events if e for x in e.makes} - kept
        live, marked, peak = 0, 0, Peak(0, 0)
        before = []
        for i, event in enumerate(events):
            before.append(live)
            if event is None:
                continue
            new = [self.sizes[x] for x in event.makes]
            unused = [self.sizes[x] for x in event.makes if last[x] == i and x in mine]
            over = [self.sizes[x] for x in {*event.reads} if last[x] == i and x in mine]
            if event.function in IN_PLACE and new and new[0] in over:
                over.remove(new.pop(0))
            live, marked = live + sum(new), marked + self._marked(new)
            peak = self._larger(peak, Peak(live, marked))
            gone = over + unused
            live, marked = live - sum(gone), marked - self._marked(gone)
        return [*before, live], peak

    def _larger(self, a: Peak, b: Peak) -> Peak:
        more = b.marked - a.marked
        return b if more + self.scale * (b.size - a.size - more) > 0 else a

    def _marked(self, sizes: Iterable[int]) -> int:
        return sum(size for size in sizes if size in self.marked)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those in whose memory an operator's arguments or results lie."""
    found: list[Tensor] = []
    for x in values:
        if isinstance(x, Tensor):
            found += parts(x)
        elif isinstance(x, tuple | list):
            found += _tensors(x)
    return found
