"""`read_rows`: rows of prompts and answers, from files, folders, data sets and streams."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.table_files import FILES, kind_of, read_columns
from fastmaml.episodes.tables import SPLIT, from_hub, is_hub_name

ALONE = ("train", "dev", "validation", "valid", "test")
"""Files that are called like a split: their folder is called like the task."""

PART = re.compile(rf"(.+?)(?:[._-]\d+[._-]\d+)?[._-]({'|'.join(ALONE)})", re.I)
"""A file's name without ending: the task, examples a class and seed (CrossFit's), and the split."""


@dataclass(frozen=True)
class Rows:
    """Rows that lie together.

    Attributes:
        name: what they are called together, which is their task where no column says otherwise.
        rows: every row by column.
        origin: where they come from, for errors.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    origin: str


def read_rows(
    data: Any,
    *,
    rows: Sequence[str] | None = None,
    without: Sequence[str] = (),
    header: Sequence[str] = (),
    limit: int | None = None,
) -> list[Rows]:
    """All rows of `data`.

    Args:
        data: a file (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, also ``.gz``, or ``.parquet``); a
            folder of such files and of folders of them; a `datasets.Dataset`, `DatasetDict` or,
            with `limit`, `IterableDataset`; a data set's name on the Hugging Face hub
            (``"owner/name:configuration"``); a list of dicts; or a dict of several of these by
            name.
        rows: only the rows with one of these in the column ``split`` (of files in folders, with one
            of these in their names; of a `DatasetDict` or a hub's data set, these splits).
        without: not the rows with one of these there.
        header: the names of columns of files that have none in their first line.
        limit: no more rows than this of each part.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: there is no such data set on the hub, or it cannot be reached.
        ImportError: the package `datasets` is needed (hub) or `pyarrow` (parquet).
        ValueError: a damaged file, a stream without `limit`, or data of an unknown kind.
    """
    if limit is not None:
        check_positive(limit=limit)
    parts = _parts(data, rows, header, limit)
    known = {str(row.get(SPLIT)) for part in parts for row in part.rows if SPLIT in row}
    if absent := [x for x in rows or () if x not in known]:
        raise ValueError(
            f"data={_named(data)} has no rows of split {absent[0]!r}: the column {SPLIT!r} has "
            f"{', '.join(sorted(known)) or 'no values'}."
        )
    found = [_wanted(part, rows, without) for part in parts]
    if not any(part.rows for part in found):
        raise ValueError(
            f"data={_named(data)} holds no rows{f' but of {tuple(without)}' if without else ''}."
        )
    return [Rows(part.name, part.rows[:limit], part.origin) for part in found if part.rows]


def _parts(
    data: Any, rows: Sequence[str] | None, header: Sequence[str], limit: int | None
) -> list[Rows]:
    if isinstance(data, str | os.PathLike):
        return _from_place(data, rows, header, limit)
    names = getattr(data, "column_names", None)
    if isinstance(names, dict):
        absent = [r for r in rows or () if r not in names]
        if absent:
            raise ValueError(f"rows={tuple(rows or ())}: the data set has {', '.join(names)} only.")
        return [
            Rows("data", [{**row, SPLIT: split} for row in part.rows], part.origin)
            for split in rows or names
            for part in _parts(data[split], None, header, limit)
        ]
    if isinstance(data, Mapping):
        return [
            Rows(str(name), part.rows, part.origin)
            for name, one in data.items()
            for part in _parts(one, rows, header, limit)
        ]
    if _is_stream(data):
        if limit is None:
            raise ValueError(
                f"data is a {type(data).__name__}, a stream: say with limit= how many of its rows "
                "to read and hold."
            )
        data = islice(data, limit)
    elif isinstance(names, list):
        data = data.with_format(None)
    elif not isinstance(data, list | tuple):
        raise ValueError(
            f"data is a {type(data).__name__}; give a file, a folder, a datasets.Dataset, "
            "DatasetDict or IterableDataset, the name of a data set on the Hugging Face hub, a "
            "list of dicts, or a dict of these by task."
        )
    return [Rows("data", _checked(data), "data")]


def _from_place(
    data: str | os.PathLike[str],
    rows: Sequence[str] | None,
    header: Sequence[str],
    limit: int | None,
) -> list[Rows]:
    path = Path(data).expanduser()
    if path.is_dir():
        return _from_folder(path, header)
    if path.is_file():
        return [_from_file(path, _stem(path), header)]
    if not isinstance(data, str) or not is_hub_name(data):
        raise FileNotFoundError(
            f"data={str(data)!r}: there is no such file or folder. Give one with "
            f"{', '.join(FILES)}, or the name of a data set on the Hugging Face hub (owner/name)."
        )
    name = data.partition(":")[2] or data.rpartition("/")[2]
    return [
        Rows(name, part.rows, repr(data)) for part in _parts(from_hub(data), rows, header, limit)
    ]


def _from_folder(folder: Path, header: Sequence[str]) -> list[Rows]:
    """Of every file below it; what a name says of task and split goes for all of its rows.

    Files of one name in different folders are different tasks, called by their folders, too.
    """
    found: list[tuple[Path, Rows]] = []
    for path in sorted(folder.rglob("*")):
        if kind_of(path.name) not in FILES or not path.is_file():
            continue
        stem, split = _stem(path), None
        place = path.parent
        if stem.lower() in ALONE and place != folder:
            place, stem, split = place.parent, place.name, stem.lower()
        elif named := PART.fullmatch(stem):
            stem, split = named[1], named[2].lower()
        part = _from_file(path, stem, header)
        if split is not None:
            part = Rows(stem, [{SPLIT: split, **row} for row in part.rows], part.origin)
        found.append((place.relative_to(folder), part))
    if not found:
        raise FileNotFoundError(
            f"the folder {folder} holds no files of rows: none ends with {', '.join(FILES)} (or "
            "with .gz after that)."
        )
    places: dict[str, set[Path]] = {}
    for place, part in found:
        places.setdefault(part.name, set()).add(place)
    return [
        part if len(places[part.name]) == 1 else replace(part, name=str(place / part.name))
        for place, part in found
    ]


def _from_file(path: Path, name: str, header: Sequence[str]) -> Rows:
    found = read_columns(path, header)
    columns = [found.column(column) for column in found.names]
    rows = [dict(zip(found.names, row, strict=True)) for row in zip(*columns, strict=True)]
    return Rows(name, rows, str(path))


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name[: -len(kind_of(name))]


def _checked(data: Iterable[Any]) -> list[Mapping[str, Any]]:
    rows = list(data)
    wrong = next((i for i, row in enumerate(rows) if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise ValueError(
            f"row {wrong} of data is a {type(rows[wrong]).__name__}: give dicts such as "
            "{'prompt': ..., 'answer': ...}."
        )
    return rows


def _wanted(part: Rows, rows: Sequence[str] | None, without: Sequence[str]) -> Rows:
    kept = [
        row
        for row in part.rows
        if (rows is None or row.get(SPLIT) in rows) and row.get(SPLIT) not in without
    ]
    return Rows(part.name, kept, part.origin)


def _is_stream(data: Any) -> bool:
    """An `IterableDataset`, or a generator."""
    return not hasattr(data, "__len__") and hasattr(data, "__iter__")


def _named(data: Any) -> str:
    return repr(str(data)) if isinstance(data, str | os.PathLike) else f"a {type(data).__name__}"
