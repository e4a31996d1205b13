"""What Triton's interpreter does not complain of: addresses out of bounds, and races of stores."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """Seeded, every launch `checked`, and fresh memory filled with NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    with checked():
        yield
    torch.use_deterministic_algorithms(False)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """``found`` has the float64 ``expected``'s values to the rounding of its own dtype."""
    half = found.dtype.itemsize == 2
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if half else {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(found.double(), expected, **tolerance)


class BoundsError(Exception):
    pass


class Bounds:
    """The elements that the tensors given to the running launch have; each is stored at most once.

    Not the storages: a strided view's gaps and what lies around a slice are out of bounds as well.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        parts = [elements(x) for x in tensors if x.numel()]
        self.starts = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
        self.stored: list[np.ndarray] = []

    def check(self, what: str, pointers: Any, mask: Any, stores: bool, place: Any) -> None:
        """Of a load or store, its active lanes."""
        lanes = np.atleast_1d(pointers.data).astype(np.uint64).ravel()
        if mask is not None:
            active = np.broadcast_to(np.asarray(mask.data, bool), pointers.data.shape)
            lanes = lanes[np.atleast_1d(active).ravel()]
        found = np.searchsorted(self.starts, lanes)
        inside = found < len(self.starts)
        inside[inside] = self.starts[found[inside]] == lanes[inside]
        if not inside.all():
            wrong = f"{int((~inside).sum())} of {len(lanes)} active lanes out of bounds"
            raise BoundsError(f"{what}: {wrong}, program {place}")
        if stores:
            self.stored.append(lanes)

    def finish(self) -> None:
        """At the end of the launch."""
        stored = np.concatenate(self.stored) if self.stored else np.zeros(0, np.uint64)
        twice = len(stored) - len(np.unique(stored))
        if twice:
            raise BoundsError(f"{twice} elements are stored more than once in one launch: a race")


def elements(x: torch.Tensor) -> np.ndarray:
    """The address of every element."""
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(x.shape, x.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size if stride else 1) * stride).ravel()
    return (offsets * x.element_size() + x.data_ptr()).astype(np.uint64)


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Every launch under the interpreter is checked against the tensors that it is given."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    begin, end = executor._init_args_hst, executor._restore_args_dev
    load, store = builder.create_masked_load, builder.create_masked_store
    running: list[Bounds] = []

    def started(self: Any, args: Any, kwargs: Any) -> Any:
        positional, named = begin(self, args, kwargs)
        given = itertools.chain(positional, named.values())
        running.append(Bounds([x for x in given if isinstance(x, torch.Tensor)]))
        return positional, named

    def ended(self: Any, *args: Any) -> None:
        end(self, *args)
        running.pop().finish()

    def loaded(self: Any, pointers: Any, mask: Any, *args: Any) -> Any:
        running[-1].check("load", pointers, mask, False, self.grid_idx)
        return load(self, pointers, mask, *args)

    def written(self: Any, pointers: Any, value: Any, mask: Any, *args: Any) -> Any:
        running[-1].check("store", pointers, mask, True, self.grid_idx)
        return store(self, pointers, value, mask, *args)

    def atomic(self: Any, *args: Any) -> None:
        raise BoundsError("an atomic: its order, and so the rounding, would not be deterministic")

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (executor, "_init_args_hst", started),
            (executor, "_restore_args_dev", ended),
            (builder, "create_masked_load", loaded),
            (builder, "create_masked_store", written),
            (builder, "create_atomic_rmw", atomic),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
