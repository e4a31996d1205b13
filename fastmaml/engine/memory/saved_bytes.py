"""What autograd keeps of a graph, in bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fastmaml.engine.base.storages import parts
from fastmaml.engine.derivatives.graphs import check_differentiable_twice
from fastmaml.engine.memory.live import QuickLiveMemory
from fastmaml.engine.step.inner_loop import InnerLoop
from fastmaml.engine.step.program import Call, tensors_of
from fastmaml.gradients.base import leaves_of

T = TypeVar("T")


def kept_bytes(call: Call) -> tuple[int, int]:
    """Of one inner step and of the query pass.

    Where the query loss is not differentiated, the second is what a pass makes on its way, judging
    by that of the inner step.

    Raises:
        MissingDerivative: the step's graph has none of the second derivative.
    """
    method, steps = call.program.method, call.program.steps
    second_order = method.second_order(steps)
    loop = call.tried(len(call.seeds), every_step=True).loop()
    with torch.enable_grad():
        meta = leaves_of(call.meta)
        own = tensors_of((meta, loop.forward.frozen, loop.forward.buffers, call.data.tree()))
        ignored = {pointer for x in own for pointer, _ in _storages(x)}
        carry, step = loop.start(meta), 0
        for number in loop.sets:
            again = partial(loop.support_losses, number, carry.parameters, meta.shared)
            run = partial(loop.step, number, carry, meta, create_graph=second_order)
            made, kept = saved(run, ignored)
            check_differentiable_twice(made.parameters.values(), partial(_listed, again))
            del made
            step = max(step, kept)
        if steps and not method.differentiates_query:
            return step, round(step * _times_as_large(loop))
        _, query = saved(lambda: loop.query(0, carry.parameters, meta.shared), ignored)
    return step, query


def _times_as_large(loop: InnerLoop) -> float:
    """How many times as many numbers the query inputs hold as the largest support inputs."""
    sets = [loop.episodes.support_of(number) for number in loop.sets]
    query, *supports = (
        sum(x.numel() for x in tensors_of(batch.inputs)) for batch in (loop.episodes.query, *sets)
    )
    return query / max(1, *supports)


def _listed(run: Callable[[], T]) -> list[T]:
    return [run()]


def saved(run: Callable[[], T], ignored: set[int]) -> tuple[T, int]:
    """What a function returns, and what its graph keeps.

    Each storage counts once, those at `ignored` addresses not.
    """
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes.update((pointer, n) for pointer, n in _storages(x) if pointer not in ignored)
        return x.detach()  # a node that keeps its own result would keep itself alive, for good

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            kept = run()  # alive until the count is done, or storages would be counted twice
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        # torch.func refuses such hooks in a model that uses it: what is left counts, all of it.
        with QuickLiveMemory() as memory:
            kept = run()
        return kept, memory.live_bytes
    return kept, sum(sizes.values())


def _storages(x: Tensor) -> list[tuple[int, int]]:
    storages = [part.untyped_storage() for part in parts(x)]
    return [(storage.data_ptr(), storage.nbytes()) for storage in storages]
