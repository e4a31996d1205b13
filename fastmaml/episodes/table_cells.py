"""The cells of a table's columns: which are missing, which are numbers, which are texts."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

MISSING = ("NoneType", "NAType", "NaTType")
TIMES = ("datetime64", "timedelta64")  # of numpy, whose items may be bare counts of nanoseconds
"""The types of what pandas, polars and Python have where there is nothing."""

MOST_CATEGORIES = 100
"""A column of more different texts is taken for something else than a category."""

Columns = Mapping[str, Sequence[Any]]


def cleaned(values: Sequence[Any]) -> list[Any]:
    """Plain Python values, and None where a cell is empty, null or NaN."""
    return [_plain(x) for x in values]


def _plain(x: Any) -> Any:
    if isinstance(x, str):
        return None if x.strip() in ("", "nan", "NaN") else x
    kind = type(x).__name__
    if kind in MISSING or (kind in TIMES and str(x) == "NaT"):
        return None
    if hasattr(x, "item") and not getattr(x, "ndim", 0) and kind not in TIMES:
        x = x.item()
    if isinstance(x, Decimal | Fraction):
        x = _whole_or_float(x)
    return None if isinstance(x, float) and math.isnan(x) else x


def _whole_or_float(x: Decimal | Fraction) -> int | float:
    """Whole numbers stay exact, as they may be names."""
    if isinstance(x, Decimal) and not x.is_finite():
        return math.nan if x.is_nan() else float(x)
    try:
        value = float(x)
    except OverflowError:
        return math.inf
    return int(x) if math.isfinite(value) and x == int(x) else value


def check_plain(columns: Columns, names: Collection[str], origin: str) -> None:
    """Check that cells are texts, numbers or truth values, or else names.

    Args:
        columns: cleaned, by name.
        names: the columns whose cells are names, which may be whatever has one value, such as a
            date, but nothing of several.
        origin: where they come from, for errors.

    Raises:
        ValueError: a cell that is none of these.
    """
    for name, values in columns.items():
        single = name in names
        for row, x in enumerate(values):
            if x is None or isinstance(x, str | int | float):
                continue
            if single and isinstance(x, Hashable) and not isinstance(x, tuple):
                continue
            what = f"a {type(x).__name__}"
            way = (
                "give a column of texts or numbers"
                if single
                else "make numbers of it, such as days or a column for each value, leave it out "
                "of inputs=, or, if it is a name, such as a date, write it as a text"
            )
            raise ValueError(
                f"row {row + 1} of {origin} (the first row of data is 1) has {_short(x)} in the "
                f"column {name!r}, {what}, which is no number and no text: {way}."
            )


def check_alike(names: Iterable[str], column: str, origin: str) -> None:
    """Check that no two names of a column differ only in spaces around them or in their encoding.

    Raises:
        ValueError: two do.
    """
    plain: dict[str, str] = {}
    for name in names:
        same = plain.setdefault(unicodedata.normalize("NFC", name.strip()), name)
        if same != name:
            raise ValueError(
                f"the column {column!r} of {origin} has {same!r} and {name!r}, which read alike "
                f"({same!a} and {name!a}): write them in one way, or so that they differ."
            )


def _short(x: Any) -> str:
    told = " ".join(repr(x).split())
    return told if len(told) <= 60 else f"{told[:57]}..."


def rows_kept(columns: Columns, missing: Literal["error", "drop"], origin: str) -> list[int]:
    """The rows that have a value in each of these columns.

    Args:
        columns: cleaned, by name.
        missing: what to do with others.
        origin: where they come from, for errors.

    Raises:
        ValueError: a row that has none, with ``missing="error"``; or no rows at all.
    """
    total = len(next(iter(columns.values())))
    gaps = {i: name for name, values in columns.items() for i, x in enumerate(values) if x is None}
    if gaps and missing == "error":
        first = min(gaps)
        raise ValueError(
            f"row {first + 1} of {origin} (the first row of data is 1) has no value in the column "
            f"{gaps[first]!r}, and {len(gaps)} of {total} rows lack one: fill it in, or leave such "
            "rows out with missing='drop'."
        )
    kept = [i for i in range(total) if i not in gaps]
    if not kept:
        raise ValueError(f"{origin} has no rows{' without missing values' * bool(total)}.")
    return kept


def number(x: Any) -> float | None:
    """The number that a cell holds or spells; None for a text."""
    if isinstance(x, str) and "_" in x:
        return None  # which Python's own numbers have, and no table's
    if not isinstance(x, str | int | float):
        return None
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf  # type: ignore[operator]
    except ValueError:
        return None


def numbers(name: str, values: Sequence[Any], rows: Sequence[int], origin: str) -> list[float]:
    """The numbers of a column.

    Args:
        name: of the column.
        values: of the rows that are kept, none missing.
        rows: their places in the whole table, for errors.
        origin: where they come from, for errors.

    Raises:
        ValueError: a cell that is no number, or infinite.
    """
    found = []
    for row, x in zip(rows, values, strict=True):
        value = number(x)
        if value is None or not math.isfinite(value):
            raise ValueError(
                f"row {row + 1} of {origin} (the first row of data is 1) has {_short(x)} in the "
                f"column {name!r}, which is {'no number' if value is None else 'not finite'}: "
                "correct it, leave the cell empty and say missing='drop', or name the column in "
                "categorical= if it holds names."
            )
        found.append(value)
    return found


def is_text(values: Sequence[Any]) -> bool:
    """Whether a column holds texts or truth values alone; a single number makes it one of these."""
    return all(isinstance(x, bool) or number(x) is None for x in values)


def check_categories(name: str, values: Collection[Any], origin: str) -> None:
    """Raise a ValueError where a column of texts has more of them than categories have."""
    if len(values) > MOST_CATEGORIES:
        raise ValueError(
            f"the column {name!r} of {origin} has {len(values)} different texts, such as "
            f"{next(iter(values))!r}: leave it out of inputs=, or name it in categorical= if "
            "these are categories."
        )
