"""The columns of a file: JSON, lines of it, values separated by commas or tabs, or parquet."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


@dataclass(frozen=True)
class NamedColumns:
    """Named columns of equal length.

    Attributes:
        names: of all columns.
        column: the values of one.
        origin: where they come from, for errors.
        filtered: whether only the rows that are wanted are there.
    """

    names: list[str]
    column: Callable[[str], list[Any]]
    origin: str
    filtered: bool = False


def kind_of(name: str) -> str:
    """The ending of a file's name, without that of a compression."""
    return Path(name.lower().removesuffix(".gz")).suffix


def read_columns(path: Path, header: Sequence[str] = ()) -> NamedColumns:
    """The columns of a file.

    Args:
        path: of the file.
        header: what a ``.csv`` or ``.tsv`` without a header calls its columns; empty: its first
            line says so.

    Raises:
        ImportError: pyarrow is needed (parquet).
        ValueError: the file is damaged, or of no kind that is known.
    """
    kind = kind_of(path.name)
    try:
        if kind == ".parquet":
            return _from_parquet(path)
        if kind not in FILES:
            raise ValueError(f"its name ends with {kind!r}; known are {', '.join(FILES)}")
        with _opened(path) as file:
            rows = list(_separated(file, kind, header) if kind in DELIMITERS else _json(file, kind))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}), as which tables are "
            "read: save it as UTF-8."
        ) from error
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.") from error
    names = list(dict.fromkeys(name for row in rows for name in row))
    return NamedColumns(names, lambda name: [row.get(name) for row in rows], str(path))


def _opened(path: Path) -> TextIO:
    encoding = "utf-8-sig"  # spreadsheets begin a file with a byte order mark
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def _json(file: TextIO, kind: str) -> Iterator[dict[str, Any]]:
    """Of one object a line or, in a ``.json``, of one array."""
    if kind == ".json":
        text = file.read()
        if text.lstrip().startswith("["):
            for number, row in enumerate(json.loads(text), 1):
                yield _object(row, f"entry {number}")
            return
        file.seek(0)
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number} is no JSON ({error}); give one object a line, or in a .json an "
                "array of objects"
            ) from error
        yield _object(row, f"line {number}")


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no object such as {{'text': ..., 'label': ...}}")
    return row


def _separated(file: TextIO, kind: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every row has as many values as the header: one more would be cut off from a text."""
    delimiter = DELIMITERS[kind]
    # Texts in a .tsv have no tabs to protect, and GLUE's own have quotation marks of all sorts.
    quoting: Any = csv.QUOTE_NONE if kind == ".tsv" else csv.QUOTE_MINIMAL
    rows = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
    header = list(names)
    told = "there are names for" if names else "the header names"
    try:
        for row in rows:
            if not row:
                continue
            if not header:
                header = _header(row, kind)
            elif len(row) != len(header):
                more = kind == ".csv" and len(row) > len(header)
                hint = "; put texts with commas in quotation marks" * more
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} values, and {told} "
                    f"{len(header)} ({', '.join(header)}){hint}"
                )
            else:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error


def _header(row: list[str], kind: str) -> list[str]:
    delimiter = DELIMITERS[kind]
    other = next((d for d in NAMES if d in row[0] and d != delimiter), None)
    if len(row) == 1 and other is not None:
        rename = f", or call it {'.tsv' if other in DELIMITERS['.tsv'] else '.csv'}"
        raise ValueError(
            f"its first line, {row[0]!r}, is separated by {NAMES[other]}, and a {kind} has "
            f"{NAMES[delimiter]}: save it with these{rename * (other in DELIMITERS.values())}"
        )
    if len({*row}) < len(row):
        raise ValueError(f"its header names a column twice: {', '.join(row)}")
    return row


def _from_parquet(path: Path) -> NamedColumns:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f'{path} needs pyarrow: pip install "fastmaml[text]".') from error
    table = parquet.read_table(path)
    return NamedColumns(table.column_names, lambda name: table[name].to_pylist(), str(path))
