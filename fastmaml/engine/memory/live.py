"""`LiveMemory`: the peak bytes of live tensors in a block of code, exact and repeatable."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmaml.engine.base.storages import made_of
from fastmaml.engine.base.trees import found_in
from fastmaml.engine.base.zero_tensors import with_memory
from fastmaml.ops.coverage import program_peak


class Alive(NamedTuple):
    """Bytes alive at a time, and those of them in storages of a marked size."""

    bytes: int = 0
    marked: int = 0

    def more(self, size: int, marked: bool) -> Alive:
        """With a storage of so many bytes more; less, where the size is negative."""
        return Alive(self.bytes + size, self.marked + size * marked)

    def at(self, scale: float) -> float:
        """Bytes alive at that time in a run that is larger in all that is not marked."""
        return self.marked + scale * (self.bytes - self.marked)


class LiveMemory(TorchDispatchMode):
    """Follows the storage of every tensor made inside the block from its birth to its death.

        with LiveMemory() as memory:
            maml(episodes).loss.backward()
        memory.peak_bytes

    It sees every operator that PyTorch dispatches: forward, backward, under `torch.func`, on any
    device but "meta", which has no memory (all are added together; a fake tensor counts as what it
    stands for), and knows what a program of the native module needs. A storage counts once however
    many tensors view it, with its new size once it is resized. Storages alive before the block
    count as zero, unless an operator resizes them. It does not see the scratch space inside a
    kernel, nor what an allocator rounds up or keeps: the figure is a lower bound of what a process
    needs, and does not depend on the machine's load. One object serves one block.

    Args:
        marked: sizes in bytes of storages of which a larger run of the kind has no more.
        scale: how many times larger that run is in all else; the peak is at the time of its own.

    Attributes:
        live: what the block made and is alive now, also after the block has ended.
        peak: what was alive after the operator that needs most.

    Raises:
        RuntimeError: the object is entered a second time.
    """

    def __init__(self, marked: Collection[int] = (), scale: float = 1.0) -> None:
        super().__init__()
        self.marked, self.scale = frozenset(marked), scale
        self.live = self.peak = Alive()
        self._sizes: dict[int, int] = {}
        self._entered = False

    @property
    def live_bytes(self) -> int:
        """Bytes of the block's storages alive now."""
        return self.live.bytes

    @property
    def peak_bytes(self) -> int:
        """The largest `live_bytes` after any operator of the block."""
        return self.peak.bytes

    def __enter__(self) -> LiveMemory:
        """Starts counting from zero."""
        if self._entered:
            raise RuntimeError("this LiveMemory has measured a block already; make a new one.")
        self._entered = True
        super().__enter__()
        return self

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the operator and counts what it made or resized."""
        return self._follow(func, args, kwargs or {})

    def _follow(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        args = with_memory(func, args)
        # torch.tensor(...) makes its tensor unseen and shows it here first, as an argument.
        fresh = func is torch.ops.aten.lift_fresh.default
        given = [] if fresh else _storages((args, kwargs))
        before = {s._cdata: s.nbytes() for s in given}
        inside = program_peak(func, args)
        if inside:
            during = self.live.more(inside, False)
            self.peak = max(self.peak, during, key=lambda alive: alive.at(self.scale))
        result = func(*args, **kwargs)
        for storage in (*given, *_storages(result)):
            if before.get(storage._cdata) != storage.nbytes():
                self._count(storage)
        self.peak = max(self.peak, self.live, key=lambda alive: alive.at(self.scale))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            self._forget(key)
        else:
            weakref.finalize(storage, self._forget, key).atexit = False
        size = self._sizes[key] = storage.nbytes()
        self.live = self.live.more(size, size in self.marked)

    def _forget(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.live = self.live.more(-size, size in self.marked)


@final
class QuickLiveMemory(LiveMemory):
    """The same of a block that compiles nothing."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the default loads all of torch.compile, for most of a second, to keep it off."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """As `LiveMemory`, whose own method PyTorch has wrapped for torch.compile."""
        return self._follow(func, args, kwargs or {})


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    every = (part for x in found_in(tree, Tensor) for part in made_of(x))
    return [x.untyped_storage() for x in every if not _without_memory(x)]


def _without_memory(x: Tensor) -> bool:
    """Whether it claims a size and has no memory: a zero of forward mode, or on the meta device,
    where PyTorch looks up what a decomposition will give.
    """
    return x.device.type == "meta" or x._is_zerotensor() or not torch._C._has_storage(x)
