"""`WholeTable`: all rows of a table as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastmaml.episodes.class_names import name_of
from fastmaml.episodes.table_cells import Columns, check_alike, numbers
from fastmaml.episodes.table_columns import Chosen
from fastmaml.episodes.table_rows import TaskRows
from fastmaml.episodes.table_scaling import (
    UNSCALED,
    Categories,
    Scaling,
    encoded,
    learned,
    scaled,
)
from fastmaml.episodes.table_targets import Kind, Labels, bits, check_classes, classes_of, kind_of

Where = tuple[Sequence[int], str]
"""The rows' places in the table as it was given, and where it comes from, for errors."""


@final
@dataclass(frozen=True)
class WholeTable:
    """Rows in the order of the table.

    Attributes:
        inputs: a tree of ``[rows, ...]``.
        targets: floating ``[rows, targets]``, or int64 classes ``[rows]``.
        kind: what they ask for.
        classes: the names of classes, in the order of their numbers; empty without classes.
        scaling: what the columns became numbers by.
    """

    inputs: Any
    targets: Tensor
    kind: Kind
    classes: tuple[str, ...]
    scaling: Scaling

    @classmethod
    def of(
        cls,
        chosen: Chosen,
        kept: Columns,
        train: Sequence[int],
        kind: Kind | Literal["auto"],
        labels: Labels,
        categorical: Sequence[str],
        scale: bool | Scaling,
        categories: Categories,
        dtype: torch.dtype,
        where: Where,
    ) -> WholeTable:
        """From cleaned cells, none of them missing; see `table`.

        Args:
            chosen: which columns are what.
            kept: the cells of these columns.
            train: the rows that scaling is learned from.
            kind, labels, categorical, scale, categories, dtype: as `table` has them.
            where: for errors.

        Raises:
            ValueError: a cell or a column that is not what it has to be.
        """
        inputs = {name: kept[name] for name in chosen.inputs}
        targets = {name: kept[name] for name in chosen.targets}
        asked = kind_of(targets, kind, where[1])
        if isinstance(scale, Scaling):
            scaling = scale
        else:
            values = targets if asked == "regression" else {}
            scaling = learned(inputs, values, categorical, train, scale, where)
            if asked == "multi-label":
                scaling = replace(scaling, targets=dict.fromkeys(targets, UNSCALED))
        found = encoded(scaling, inputs, categories, dtype, where)
        if asked == "classification":
            ((name, column),) = targets.items()
            names = classes_of(column)
            check_alike(names, name, where[1])
            if labels == "table" and scaling is scale:
                names = scaling.classes
                check_classes(column, names, *where)
            elif labels == "table":
                scaling = replace(scaling, classes=names)
            number = {name: i for i, name in enumerate(names)}
            numbered = torch.tensor([number[name_of(x)] for x in column])
            return cls(found, numbered, asked, names, scaling)
        if [*scaling.targets] != [*targets]:  # whose order is that of the outputs
            raise ValueError(
                f"scale= was learned of the targets {', '.join(scaling.targets) or 'of none'}, and "
                f"these are {', '.join(targets)}: give the same columns, in that order."
            )
        if asked == "multi-label":
            if any(moments != UNSCALED for moments in scaling.targets.values()):
                raise ValueError(
                    f"scale= was learned of {', '.join(targets)} as numbers to predict, and these "
                    "are labels (kind='multi-label'): give one that was learned of such."
                )
            said = torch.tensor(bits(targets, *where), dtype=dtype).T.contiguous()
            return cls(found, said, asked, (), scaling)
        floats = {name: numbers(name, values, *where) for name, values in targets.items()}
        return cls(found, scaled(floats, scaling.targets, dtype), asked, (), scaling)

    @property
    def outputs(self) -> int:
        """How many numbers a model has to give of a row: classes or targets."""
        return len(self.classes) or self.targets.shape[1]

    def rows(
        self,
        members: Mapping[str, Sequence[int]],
        left_out: Sequence[str],
        dropped: int,
        fingerprint: Tensor,
        trained: Sequence[str],
    ) -> TaskRows:
        """Those of some tasks.

        Args:
            members: the rows of each.
            left_out: what other tasks had too few rows.
            dropped: how many rows of the table had no value in some column.
            fingerprint: of the table.
            trained: the names of the training tasks.
        """
        order = torch.tensor([i for rows in members.values() for i in rows])
        return TaskRows(
            names=tuple(members),
            sizes=torch.tensor([len(rows) for rows in members.values()]),
            inputs=tree_map_only(Tensor, lambda x: x[order], self.inputs),
            targets=self.targets[order],
            kind=self.kind,
            classes=self.classes,
            dropped=dropped,
            left_out=tuple(left_out),
            fingerprint=fingerprint,
            trained=_digest([self.scaling.told(), *sorted(trained)]),
        )


def fingerprint(chosen: Chosen, cells: Columns) -> Tensor:
    """Of the cells of the columns that are used, uint8 ``[32]``."""
    return _digest(x for name in chosen.all() for x in (name, *cells[name]))


def _digest(parts: Iterable[Any]) -> Tensor:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part}\x1f".encode())
    return torch.tensor(list(found.digest()), dtype=torch.uint8)
