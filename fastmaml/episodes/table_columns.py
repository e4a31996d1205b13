"""The columns of a table, wherever it comes from, and which of them are meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fastmaml.episodes.table_files import FILES, NamedColumns, read_columns
from fastmaml.episodes.tables import from_dataset


def columns_of(data: Any) -> NamedColumns:
    """The columns of a file, a data frame, a `datasets.Dataset` or a dict; or those given.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pyarrow is needed (parquet).
        ValueError: a damaged file, columns of different lengths, or what is no table.
    """
    if isinstance(data, NamedColumns):
        return data
    if isinstance(data, str | os.PathLike):
        path = Path(data).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"data={str(data)!r}: there is no such file. Give one that ends with "
                f"{', '.join(FILES)}, a data frame, or a dict of columns."
            )
        return read_columns(path)
    names = getattr(data, "column_names", None)
    if isinstance(names, Mapping):
        raise ValueError(
            f"data is a {type(data).__name__} of {', '.join(names)}: give one of them, such as "
            f"data={next(iter(names))!r} of it; tasks are divided here, by split_column=, "
            "validation_tasks= and test_tasks=."
        )
    if isinstance(names, list) and hasattr(data, "with_format"):
        return from_dataset(data, filtered=False)
    if isinstance(data, Mapping):
        return _equally_long({str(name): _listed(x) for name, x in data.items()}, "the dict")
    names = getattr(data, "columns", None)  # of pandas an Index, of polars a list
    if names is not None and all(hasattr(data[name], "to_list") for name in names):
        own = {str(name): name for name in names}
        return NamedColumns(
            list(own), lambda name: list(data[own[name]].to_list()), f"the {type(data).__name__}"
        )
    raise ValueError(
        f"data is a {type(data).__name__}; give a file, a data frame of pandas or polars, a "
        "datasets.Dataset (no stream), or a dict of columns."
    )


def _listed(column: Any) -> list[Any]:
    times = getattr(getattr(column, "dtype", None), "kind", "") in (
        "m",
        "M",
    )  # whose items are kept
    found: list[Any] = list(column) if times or not hasattr(column, "tolist") else column.tolist()
    return found


def _equally_long(columns: Mapping[str, list[Any]], origin: str) -> NamedColumns:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{origin} has columns of different lengths: {lengths}.")
    return NamedColumns(list(columns), lambda name: columns[name], origin)


@final
@dataclass(frozen=True)
class Chosen:
    """The names of the columns that are used.

    Attributes:
        task: tells tasks apart.
        inputs: what the model sees.
        targets: what it is to say.
        split: says of which split a task is; None where nothing does.
    """

    task: str
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    split: str | None

    def all(self) -> list[str]:
        """Each, in a fixed order."""
        return [self.task, *self.inputs, *self.targets, *([self.split] if self.split else [])]

    def without_numbers(self) -> list[str]:
        """Those whose cells are names."""
        return [self.task, *([self.split] if self.split else [])]


def chosen(
    data: NamedColumns,
    task: str,
    inputs: Sequence[str] | str | None,
    target: Sequence[str] | str,
    split: str | None,
) -> Chosen:
    """Which columns are meant; without `inputs`, all that nothing else names.

    Raises:
        ValueError: a column that is not there, one of two meanings, or none for the inputs.
    """
    targets = _names(target)
    taken = [task, *targets, *([split] if split else [])]
    found = _names(inputs) if inputs is not None else tuple(n for n in data.names if n not in taken)
    meant = {"task": (task,), "inputs": found, "target": targets, "split_column": _names(split)}
    for what, names in meant.items():
        for name in names:
            if name not in data.names:
                raise ValueError(
                    f"{what}={name!r}: {data.origin} has no such column{_meant(name, data.names)}. "
                    f"Its columns are {', '.join(data.names) or 'none'}."
                )
    if not found or not targets:
        empty = "target" if found else "inputs"
        raise ValueError(
            f"{empty} names no column: give at least one of {', '.join(data.names) or 'none'}."
        )
    every = [*found, *taken]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        where = [what for what, names in meant.items() if twice in names]
        raise ValueError(
            f"the column {twice!r} is named twice ({', '.join(where)}): each column is for one "
            "thing, and what tells tasks apart or is to be said is no input."
        )
    return Chosen(task, found, targets, split)


def _names(given: Sequence[str] | str | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def _meant(name: str, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name.lower(), [n.lower() for n in names], 1, 0.5)
    found = next((n for n in names if n.lower() in nearest), None)
    return "" if found is None else f" (did you mean {found!r}?)"
