"""Finding the embeddings that can adapt in some of their rows, by watching the model run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base import functorch
from fastmaml.engine.base.storages import address
from fastmaml.engine.routing.row_tables import RowTable, asks_about
from fastmaml.engine.step.program import Call
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients.base import detached

LEAST_ROWS = 1024
"""A table with fewer rows is copied whole: finding its rows would cost more."""


def find_tables(call: Call) -> tuple[RowTable, ...]:
    """The embeddings of which a task needs only the rows that it looks up: exact, and worth it.

    Args:
        call: of one task, like those to come; it is run once on its support and query set.
    """
    program, episodes = call.program, call.data
    if not (program.method.rows_suffice and program.rule.by_row):
        return ()
    if not isinstance(episodes, Episodes) or episodes.later:
        return ()
    meta = detached(call.meta)
    if not any(p.ndim == 2 and p.shape[0] >= LEAST_ROWS for p in meta.adapted.values()):
        return ()
    forward = replace(program.forward, backend="reference")  # in which the model's calls are seen
    leaves = tree_leaves(episodes.support.inputs)
    uses = [Uses(meta.adapted, leaves), Uses(meta.adapted, tree_leaves(episodes.query.inputs))]
    loop = call.by(forward=forward).tried(1, every_step=True).loop()
    with torch.no_grad():
        carry = loop.start(meta)
        with uses[0]:
            loop.support_losses(0, carry.parameters, meta.shared)
        with uses[1]:
            loop.query(program.steps, carry.parameters, meta.shared)
    found = {n: uses[0].found.get(n, set()) | uses[1].found.get(n, set()) for n in meta.adapted}
    tables = [
        RowTable(name, leaf)
        for name, leaves in found.items()
        if len(leaves) == 1 and (leaf := next(iter(leaves))) is not None
    ]
    sizes = {n: p.shape[0] for n, p in meta.adapted.items() if p.ndim == 2}
    least = max([LEAST_ROWS, *(2 * table.count(episodes) for table in tables)])
    return tuple(table for table in tables if sizes[table.name] >= least)


def about_tables(call: Call) -> list[str]:
    """A line for each table of its program."""
    return [
        f"embeddings: {table.name} adapts in the rows that a task looks up, at most "
        f"{table.count(call.data):,} of {len(call.meta.adapted[table.name]):,}"
        for table in call.program.tables
    ]


class Uses(TorchFunctionMode):
    """Watches what a model does with its adapted tables.

    Args:
        parameters: by name; those with two dimensions are watched, wherever views of them go.
        inputs: the leaves of a batch's inputs.
    """

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Sequence[Any]) -> None:
        super().__init__()
        self.tables = {address(p): n for n, p in parameters.items() if p.ndim == 2 and address(p)}
        self.inputs = [
            (address(x), x.numel(), x.dtype) if isinstance(x, Tensor) else None for x in inputs
        ]
        self.found: dict[str, set[int | None]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, and note the tables among its arguments."""
        kwargs = dict(kwargs or {})
        if not asks_about(func) and func is not Tensor.squeeze:  # which a task's share is made by
            for i, x in enumerate((*args, *kwargs.values())):
                if isinstance(x, Tensor) and (name := self._table(x)) is not None:
                    leaf = self._leaf(func, i, args, kwargs)
                    self.found.setdefault(name, set()).add(leaf)
        return func(*args, **kwargs)

    def _table(self, x: Tensor) -> str | None:
        if x.layout is not torch.strided or x._is_zerotensor() or x.ndim not in (2, 3):
            return None
        if functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x):
            return None
        return self.tables.get(address(x))

    def _leaf(self, func: Any, place: int, args: Any, kwargs: Mapping[str, Any]) -> int | None:
        """The input that an embedding's indices are; None for any other use of its table."""
        if func is not F.embedding or place != 1:
            return None
        if kwargs.get("max_norm") is not None or kwargs.get("scale_grad_by_freq"):
            return None
        if (kwargs.get("padding_idx") or 0) < 0:
            return None  # counted from the end of the whole table
        if not isinstance(args[0], Tensor) or not args[0].is_contiguous():
            return None
        key = (address(args[0]), args[0].numel(), args[0].dtype)
        return self.inputs.index(key) if key in self.inputs else None
