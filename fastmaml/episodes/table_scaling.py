"""`Scaling`: what a table's columns became numbers by, learned from the training tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from fastmaml.episodes.class_names import name_of
from fastmaml.episodes.table_cells import Columns, check_alike, check_categories, is_text, numbers

Categories = Literal["one-hot", "index"]

UNSCALED = (0.0, 1.0)
"""Mean and deviation of what stays as it is."""


@final
@dataclass(frozen=True)
class Scaling:
    """How columns become tensors: means and deviations of numbers, numbers of categories.

    Attributes:
        inputs: by column, mean and standard deviation, in the column's own units.
        categories: by column, the texts that the training tasks have, in order; of one-hot inputs
            another text has zeros alone, of indices the number behind the last.
        targets: by column, mean and standard deviation (`UNSCALED` of several labels); empty
            where targets are classes.
        classes: their names, in the order of their numbers; empty where there are none, or each
            task numbers its own.
    """

    inputs: Mapping[str, tuple[float, float]]
    categories: Mapping[str, tuple[str, ...]]
    targets: Mapping[str, tuple[float, float]]
    classes: tuple[str, ...] = ()

    def unscaled(self, predictions: Tensor) -> Tensor:
        """What a model of a regression says, in the targets' own units.

        Args:
            predictions: ``[..., targets]``.

        Returns:
            The same shape and dtype.
        """
        mean, deviation = self._of_targets(predictions)
        return predictions * deviation + mean

    def scaled(self, targets: Tensor) -> Tensor:
        """The other way round: ``[..., targets]`` in their own units, as the model sees them."""
        mean, deviation = self._of_targets(targets)
        return (targets - mean) / deviation

    def told(self) -> str:
        """All of it in one text, the same wherever it was learned from the same rows."""
        maps = (dict(x) for x in (self.inputs, self.categories, self.targets))
        return repr((*maps, self.classes))

    def _of_targets(self, like: Tensor) -> Tensor:
        if not self.targets or like.shape[-1] != len(self.targets):
            raise ValueError(
                f"there are {len(self.targets)} scaled targets ({', '.join(self.targets)}), and "
                f"the tensor has the shape {list(like.shape)}: give [..., targets]."
            )
        return torch.tensor(list(self.targets.values()), dtype=like.dtype, device=like.device).T


def learned(
    inputs: Columns,
    targets: Columns,
    categorical: Sequence[str],
    train: Sequence[int],
    scale: bool,
    where: tuple[Sequence[int], str],
) -> Scaling:
    """The scaling of columns whose cells are cleaned, and none of them missing.

    Args:
        inputs: by name.
        targets: those that are numbers.
        categorical: columns of numbers that are names all the same.
        train: the rows of the training tasks.
        scale: False for means of 0 and deviations of 1.
        where: the rows' places in the whole table and where it comes from, for errors.

    Raises:
        ValueError: a cell that is no number in a column of numbers; too many texts.
    """
    unknown = next((name for name in categorical if name not in inputs), None)
    if unknown is not None:
        raise ValueError(
            f"categorical names {unknown!r}, which is none of the inputs {', '.join(inputs)}."
        )
    texts = {n: v for n, v in inputs.items() if n in categorical or is_text(v)}
    categories = {}
    for name, values in texts.items():
        categories[name] = tuple(dict.fromkeys(sorted(name_of(values[i]) for i in train)))
        if name not in categorical:
            check_categories(name, categories[name], where[1])

    def moments(columns: Columns) -> dict[str, tuple[float, float]]:
        return {n: _moments(numbers(n, v, *where), train, scale) for n, v in columns.items()}

    return Scaling(
        moments({n: v for n, v in inputs.items() if n not in texts}), categories, moments(targets)
    )


def _moments(values: Sequence[float], rows: Sequence[int], scale: bool) -> tuple[float, float]:
    if not scale:
        return 0.0, 1.0
    # Over a power of two, so that no square overflows; sums of fsum are the same everywhere.
    power = math.frexp(max(abs(values[i]) for i in rows))[1]
    found = [math.ldexp(values[i], -power) for i in rows]
    mean = math.fsum(found) / len(found)
    deviation = math.sqrt(math.fsum((x - mean) * (x - mean) for x in found) / len(found))
    # What is constant up to rounding stays so, in place of becoming noise.
    constant = deviation <= 1e-12 * max(map(abs, found))
    return math.ldexp(mean, power), 1.0 if constant else math.ldexp(deviation, power)


def encoded(
    scaling: Scaling,
    columns: Columns,
    categories: Categories,
    dtype: torch.dtype,
    where: tuple[Sequence[int], str],
) -> Tensor | dict[str, Tensor]:
    """The inputs of all rows.

    Returns:
        Floating ``[rows, features]``, the numbers first; or with indices of categories a dict of
        ``numbers`` (where there are any) and ``categories``, int64 ``[rows, columns]``.

    Raises:
        ValueError: a cell that is no number in a column of numbers; a column of another kind
            than the scaling has it for.
    """
    known = {*scaling.inputs, *scaling.categories}
    if known != {*columns}:
        raise ValueError(
            f"scale= was learned of the inputs {', '.join(sorted(known))}, and these are "
            f"{', '.join(columns)}: give the same columns."
        )
    floats = {name: numbers(name, columns[name], *where) for name in scaling.inputs}
    parts = [scaled(floats, scaling.inputs, dtype)] if floats else []
    for name, texts in scaling.categories.items():
        check_alike(dict.fromkeys([*texts, *map(name_of, columns[name])]), name, where[1])
    index = [_index(columns[name], texts) for name, texts in scaling.categories.items()]
    if categories == "index" and index:
        found = {"categories": torch.stack(index, 1)}
        return {"numbers": parts[0]} | found if floats else found
    for numbers_of, texts in zip(index, scaling.categories.values(), strict=True):
        # The number behind the last is cut off: such a row has zeros alone.
        every = torch.nn.functional.one_hot(numbers_of, len(texts) + 1)
        parts.append(every[:, :-1].to(dtype))
    return torch.cat(parts, 1)


def scaled(
    columns: Mapping[str, Sequence[float]],
    moments: Mapping[str, tuple[float, float]],
    dtype: torch.dtype,
) -> Tensor:
    """Floating ``[rows, columns]``: the numbers less their mean, over their deviation.

    Raises:
        ValueError: a number that `dtype` cannot hold.
    """
    found = torch.tensor(list(columns.values()), dtype=torch.float64).T
    mean, deviation = torch.tensor([moments[n] for n in columns], dtype=torch.float64).T
    made = ((found - mean) / deviation).to(dtype).contiguous()
    wrong = [
        name
        for name, fits in zip(columns, made.isfinite().all(0).tolist(), strict=True)
        if not fits
    ]
    if wrong:
        worst = max(columns[wrong[0]], key=abs)
        raise ValueError(
            f"the column {wrong[0]!r} has {worst:g}, which {dtype} cannot hold as it is scaled: "
            "give it in other units (a logarithm, thousands), or correct it."
        )
    return made


def _index(values: Sequence[Any], texts: Sequence[str]) -> Tensor:
    number = {text: i for i, text in enumerate(texts)}
    return torch.tensor([number.get(name_of(x), len(texts)) for x in values])
