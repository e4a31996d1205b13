"""`read_table`: labelled texts from a file, a `datasets.Dataset` or the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from fastmaml.episodes.class_names import Label
from fastmaml.episodes.column_names import Columns, chosen_columns
from fastmaml.episodes.table_files import FILES, NamedColumns, kind_of, read_columns

SPLIT = "split"


@dataclass(frozen=True)
class Table:
    """Labelled texts, or pairs of texts.

    Attributes:
        texts: the first or only text of every row.
        pairs: the second, or None.
        labels: one a row: class names, class numbers, or values.
        origin: where they come from, for errors.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[Label]
    origin: str

    def __len__(self) -> int:
        return len(self.texts)


def read_table(
    data: Any, *, text: Columns = None, label: str | None = None, rows: Columns = None
) -> Table:
    """The labelled texts of `data`, without the rows that have no label.

    Args:
        data: a file: ``.jsonl`` with one object a line, ``.json`` with that or with an array of
            objects, ``.csv``, ``.tsv`` (in which quotation marks mean nothing), all also with
            ``.gz``, or ``.parquet``; a `datasets.Dataset` or `DatasetDict`; or a data set's name
            on the Hugging Face hub, with the name of its configuration behind a colon where it
            has several (``"nyu-mll/glue:sst2"``).
        text: the column of texts, or the two columns of pairs; None for a usual name: a pair of
            `column_names.PAIRS`, or else the first of `column_names.SINGLES` that is there.
        label: the column of labels; None for the first of `column_names.LABELS`. Class numbers that
            the data set has names for become these. An empty label, null or NaN is none.
        rows: only the rows with this, or one of these, in the column ``split``; of a `DatasetDict`
            or a hub's data set, these splits. None for all.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: there is no such data set on the hub, or it cannot be reached.
        ImportError: the package `datasets` is needed (hub) or `pyarrow` (parquet).
        ValueError: a damaged file, or columns or rows that are not there.
    """
    wanted = (rows,) if isinstance(rows, str) else None if rows is None else tuple(rows)
    parts = list(_parts(data, wanted))
    found = [_table(part, text, label, wanted) for part in parts]
    origin = parts[0].origin
    if len({t.pairs is None for t in found}) > 1:
        raise ValueError(
            f"{origin} has pairs of texts in some splits only: name the columns, text=."
        )
    pairs = [x for t in found for x in t.pairs or ()]
    table = Table(
        [x for t in found for x in t.texts],
        None if found[0].pairs is None else pairs,
        [x for t in found for x in t.labels],
        origin,
    )
    if not len(table):
        raise ValueError(f"{origin} holds no labelled texts{f' in {wanted}' if wanted else ''}.")
    return table


def is_hub_name(data: str) -> bool:
    """Whether `data` can be the name of a data set on the hub ("name" or "owner/name")."""
    fits = re.fullmatch(r"([\w.-]+/)?[\w.-]+(:[\w.-]+)?", data)
    return fits is not None and kind_of(data) not in FILES


def _parts(data: Any, rows: tuple[str, ...] | None) -> Iterator[NamedColumns]:
    """The data as one or several tables of columns."""
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        if path.is_file():
            yield read_columns(path)
            return
        if not isinstance(data, str) or not is_hub_name(data):
            raise FileNotFoundError(
                f"data={str(data)!r}: there is no such file. Give a {', '.join(FILES)} file, or "
                "the name of a data set on the Hugging Face hub (owner/name)."
            )
        data = from_hub(data)
    names = getattr(data, "column_names", None)
    if isinstance(names, dict):
        absent = [r for r in rows or () if r not in names]
        if absent:
            raise ValueError(f"rows={rows}: the data set has the splits {', '.join(names)} only.")
        for split in rows or names:
            yield from_dataset(data[split], filtered=True)
    elif isinstance(names, list):
        yield from_dataset(data, filtered=False)
    else:
        raise ValueError(
            f"data is a {type(data).__name__}; give a file, a datasets.Dataset or DatasetDict (no "
            "stream), or the name of a data set on the Hugging Face hub."
        )


def from_dataset(data: Any, filtered: bool) -> NamedColumns:
    """The columns of a `datasets.Dataset`; classes that it has names for become these.

    Args:
        data: the data set.
        filtered: whether it holds only the rows that are wanted.
    """

    def column(name: str) -> list[Any]:
        values = list(data.with_format(None)[name])
        known = getattr(data.features[name], "names", None)  # of a ClassLabel; -1 is no label
        return (
            values if known is None else [known[v] if v not in (None, -1) else None for v in values]
        )

    return NamedColumns(list(data.column_names), column, f"the {type(data).__name__}", filtered)


def from_hub(name: str) -> Any:
    """The `DatasetDict` of that name.

    Raises:
        ConnectionError: it does not exist, or the hub cannot be reached.
        ImportError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f'{name!r} is no file here, and the hub needs datasets: pip install "fastmaml[text]".'
        ) from error
    owner, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(owner, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"cannot get {name!r} from the Hugging Face hub ({reason}), and there is no such file "
            "here. Check the name (owner/name, or owner/name:configuration); the hub needs the "
            "internet, or its cache, and HF_HUB_OFFLINE unset. Or give a file of your own."
        ) from error


def _table(
    data: NamedColumns, text: Columns, label: str | None, rows: tuple[str, ...] | None
) -> Table:
    chosen, labelled = chosen_columns(data, text, label)
    labels = data.column(labelled)
    keep = [not _absent(x) for x in labels]
    if rows is not None and not data.filtered:
        keep = [a and b for a, b in zip(keep, _in_rows(data, rows), strict=True)]
    columns = []
    for name in chosen:
        kept = [x for x, wanted in zip(data.column(name), keep, strict=True) if wanted]
        bad = next((x for x in kept if not isinstance(x, str)), None)
        if bad is not None or None in kept:
            raise ValueError(f"column {name!r} of {data.origin} holds {bad!r}, which is no text.")
        columns.append(kept)
    labels = [x for x, wanted in zip(labels, keep, strict=True) if wanted]
    return Table(columns[0], columns[1] if len(columns) > 1 else None, labels, data.origin)


def _absent(label: Any) -> bool:
    """Whether there is no label: NaN is how pandas says so in a column of numbers."""
    return label is None or label == "" or (isinstance(label, float) and isnan(label))


def _in_rows(data: NamedColumns, rows: tuple[str, ...]) -> list[bool]:
    splits = data.column(SPLIT) if SPLIT in data.names else []
    absent = [r for r in rows if r not in splits]
    if absent:
        known = ", ".join(sorted({str(s) for s in splits})) or "no such column"
        raise ValueError(f"rows={rows}: the column {SPLIT!r} of {data.origin} has {known}.")
    return [s in rows for s in splits]
