"""`LiveMemory`: the peak bytes of live tensors in a block of code, exact and repeatable."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmaml.engine.base.trees import found_in
from fastmaml.engine.base.zero_tensors import with_memory


class LiveMemory(TorchDispatchMode):
    """Follows the storage of every tensor made inside the block from its birth to its death.

        with LiveMemory() as memory:
            maml(episodes).loss.backward()
        memory.peak_bytes

    It sees every operator that PyTorch dispatches: forward, backward, under `torch.func`, on any
    device (all devices are added together). A storage counts once however many tensors view it,
    with its new size once it is resized. Storages alive before the block count as zero, unless
    an operator resizes them. It does not see the scratch space inside a kernel, nor what an
    allocator rounds up or keeps: the figure is a lower bound of what a process needs, and does
    not depend on the machine's load.

    Sparse tensors have no storage and are refused by PyTorch. One object serves one block.

    Attributes:
        live_bytes: bytes of the block's storages alive now, also after the block has ended.
        peak_bytes: the largest `live_bytes` after any operator of the block.

    Raises:
        RuntimeError: the object is entered a second time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._entered = False

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
        kwargs, args = kwargs or {}, with_memory(func, args)
        # torch.tensor(...) makes its tensor unseen and shows it here first, as an argument.
        fresh = func is torch.ops.aten.lift_fresh.default
        before = {} if fresh else {s._cdata: s.nbytes() for s in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages((args, kwargs, result)):
            if before.get(storage._cdata) != storage.nbytes():
                self._count(storage)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            weakref.finalize(storage, self._forget, key).atexit = False
        self.live_bytes += storage.nbytes() - self._sizes.get(key, 0)
        self._sizes[key] = storage.nbytes()

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for x in found_in(tree, Tensor):
        # Forward mode stands zero tangents for by tensors that claim a size but have no memory.
        if not x._is_zerotensor():
            yield x.untyped_storage()
