"""`text_task`: a whole data set of labelled texts as one task of a `Mixture`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.episodes.tables import Columns, Label, Table, read_table
from fastmaml.episodes.text import ordered
from fastmaml.episodes.tokens import Cache, Tokens, tokenised


@final
@dataclass(frozen=True)
class LabelledText:
    """Texts and what they are.

    Attributes:
        tokens: of every text.
        labels: ``[texts]``: classes, int64, or the values of a regression, float32.
    """

    tokens: Tokens
    labels: Tensor

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.tokens),):
            raise ValueError(
                f"labels has shape {list(self.labels.shape)}, and there are {len(self.tokens)} "
                "texts: give one label a text."
            )


@final
@dataclass(frozen=True)
class TextTask:
    """A data set that is one task; `text_task` makes it from files or the hub.

    Attributes:
        name: for reports.
        classes: how many there are; 1 for a regression.
        support: what support sets are drawn from, and query sets if there is no `query`.
        query: what query sets are drawn from.

    Raises:
        ValueError: labels that do not fit `classes`.
    """

    name: str
    classes: int
    support: LabelledText
    query: LabelledText | None = None

    def __post_init__(self) -> None:
        for part in (self.support, self.query):
            if part is None:
                continue
            labels = part.labels
            wanted = torch.float32 if self.classes == 1 else torch.int64
            outside = self.classes > 1 and not 0 <= labels.min() <= labels.max() < self.classes
            if labels.dtype != wanted or outside:
                raise ValueError(
                    f"the labels of {self.name!r} are {labels.dtype}, from {labels.min()} to "
                    f"{labels.max()}, and classes={self.classes}: give int64 from 0 to classes - 1,"
                    " or float32 and classes=1."
                )

    def __len__(self) -> int:
        """The number of examples that support sets are drawn from."""
        return len(self.support.tokens)


def text_task(
    name: str,
    data: Any,
    tokenizer: Any,
    *,
    classes: Sequence[str | int] | None = None,
    value_range: tuple[float, float] | None = None,
    query_data: Any = None,
    rows: Columns = None,
    query_rows: Columns = None,
    text: Columns = None,
    label: str | None = None,
    max_length: int = 128,
    cache: Cache = True,
) -> TextTask:
    """A data set of labelled texts, or pairs of texts, as one task.

    Args:
        name: for reports.
        data: a file, a `datasets.Dataset` or `DatasetDict`, or a name on the Hugging Face hub; see
            `fastmaml.episodes.tables.read_table`, as for `rows`, `text` and `label`.
        tokenizer: of transformers.
        classes: the labels in the order of their numbers 0, 1, ...; in the data, a class may be
            given by its name or its number. None: those that occur, by number if all are integers,
            else alphabetically.
        value_range: makes the task a regression: the values that become 0 and 1.
        query_data: what query sets are drawn from; None for `data`, or for the rows `query_rows` of
            it where these are given.
        rows: only the rows with one of these in the column ``split``; None for all.
        query_rows: likewise for the query sets.
        text: the column of texts, or two of pairs; None for a usual name.
        label: the column of labels; None for a usual name.
        max_length: longer texts are cut to so many tokens.
        cache: where token numbers are kept from one run to the next: a folder, True for
            ``~/.cache/fastmaml/tokens``, or False.

    Raises:
        FileNotFoundError, ConnectionError, ImportError: as `read_table`.
        ValueError: a label that is none of the classes, or no number in a regression; or as
            `read_table`.
    """
    table = read_table(data, text=text, label=label, rows=rows)
    names = ordered(table.labels) if classes is None else [str(c) for c in classes]
    count = 1 if value_range is not None else len(names)
    if value_range is None and count < 2:
        raise ValueError(f"{name!r} has the classes {names}: a task needs at least two.")

    def labelled(table: Table) -> LabelledText:
        tokens = tokenised(table, tokenizer, max_length, cache)
        if value_range is not None:
            return LabelledText(tokens, _values(table, *value_range))
        number = [_class(x, names, table.origin) for x in table.labels]
        return LabelledText(tokens, torch.tensor(number))

    support = labelled(table)
    if query_data is None and query_rows is None:
        return TextTask(name, count, support)
    query_data = data if query_data is None else query_data
    other = read_table(query_data, text=text, label=label, rows=query_rows)
    return TextTask(name, count, support, labelled(other))


def _class(label: Label, names: list[str], origin: str) -> int:
    name = str(label)
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise ValueError(
        f"{origin} has the label {label!r}, which is none of the classes {', '.join(names)} and no "
        f"number from 0 to {len(names) - 1}."
    )


def _values(table: Table, low: float, high: float) -> Tensor:
    if not low < high:
        raise ValueError(f"value_range={(low, high)}: give a smaller and a larger number.")
    try:
        values = [float(x) for x in table.labels]
    except ValueError as error:
        raise ValueError(f"{table.origin} is no regression: {error}.") from error
    return (torch.tensor(values, dtype=torch.float64).sub(low) / (high - low)).float()
