"""`text_task`: a whole data set of labelled texts as one task of a `Mixture`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.episodes.class_names import ClassNames, Label
from fastmaml.episodes.tables import Columns, Table, read_table
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
    classes: Sequence[Label] | None = None,
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
        classes: the names of the classes in the order of their numbers 0, 1, ...; every label is
            one of them. Where none of the names looks like a number, as ("negative", "positive"),
            the labels of a file may also be the classes' numbers, all of them. None: the classes
            are the labels that occur in `data`, by number if all are integers, else alphabetically,
            and every label is one of these, that of `query_data` too.
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
        ValueError: a label that is none of the classes, or no number in a regression; fewer than
            two classes, one of them twice, or classes of a regression; or as `read_table`.
    """
    table = read_table(data, text=text, label=label, rows=rows)
    labels = Labels.of(name, table, classes, value_range)

    def labelled(table: Table) -> LabelledText:
        return LabelledText(tokenised(table, tokenizer, max_length, cache), labels.tensor(table))

    support = labelled(table)
    if query_data is None and query_rows is None:
        return TextTask(name, labels.classes, support)
    query_data = data if query_data is None else query_data
    other = read_table(query_data, text=text, label=label, rows=query_rows)
    return TextTask(name, labels.classes, support, labelled(other))


@final
@dataclass(frozen=True)
class Labels:
    """What the labels of a task mean, whatever file they are in.

    Attributes:
        names: of the classes; None in a regression.
        value_range: the values of a regression that become 0 and 1; else None.
    """

    names: ClassNames | None
    value_range: tuple[float, float] | None

    @staticmethod
    def of(
        name: str,
        table: Table,
        classes: Sequence[Label] | None,
        value_range: tuple[float, float] | None,
    ) -> Labels:
        """Those that were given, or that occur in a table; see `text_task`."""
        if value_range is not None:
            if classes is not None:
                raise ValueError(
                    f"{name!r} is given value_range={value_range}, which makes it a regression, "
                    f"and classes={list(classes)}: leave one of them out."
                )
            low, high = value_range
            if not low < high:
                raise ValueError(f"value_range={value_range}: give a smaller and a larger number.")
            return Labels(None, value_range)
        names = (
            ClassNames.found_in(table.labels, table.origin)
            if classes is None
            else ClassNames.given(classes)
        )
        if len(names) < 2:
            raise ValueError(
                f"{name!r} has the classes {list(names.names)}: a task needs at least two."
            )
        return Labels(names, None)

    @property
    def classes(self) -> int:
        """How many there are; 1 in a regression."""
        return 1 if self.names is None else len(self.names)

    def same_names(self, other: Labels) -> bool:
        """Whether both are of the same classes in the same order, or both of regressions."""
        mine, theirs = (None if x.names is None else x.names.names for x in (self, other))
        return mine == theirs

    def about(self) -> str:
        """What there is to tell apart, for errors."""
        if self.names is None:
            return f"value_range={self.value_range}"
        return f"the classes {self.names.listed()}"

    def tensor(self, table: Table) -> Tensor:
        """``[texts]``: the numbers of the classes, int64, or values, float32."""
        if self.names is not None:
            return torch.tensor(self.names.numbers(table.labels, table.origin))
        assert self.value_range is not None
        return _values(table, *self.value_range)


def _values(table: Table, low: float, high: float) -> Tensor:
    try:
        values = torch.tensor([float(x) for x in table.labels], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{table.origin} is no regression: {error}.") from error
    if not values.isfinite().all():
        wrong = table.labels[int(values.isfinite().int().argmin())]
        raise ValueError(f"{table.origin} has the value {wrong!r}: a regression needs numbers.")
    return (values.sub(low) / (high - low)).float()
