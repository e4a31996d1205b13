"""What a table's target columns ask for: numbers, classes, or several yes and no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from fastmaml.episodes.class_names import name_of, ordered
from fastmaml.episodes.table_cells import Columns, is_text, number, numbers

Kind = Literal["regression", "classification", "multi-label"]
KINDS = get_args(Kind)
Labels = Literal["table", "task"]

FEW = 10
"""Whole numbers that are no more different ones than this may be classes."""


def kind_of(targets: Columns, kind: Kind | Literal["auto"], origin: str) -> Kind:
    """What is asked for.

    Args:
        targets: the columns' cells, cleaned.
        kind: what the user says; auto looks at the cells: texts and truth values are classes,
            numbers are numbers.
        origin: where they come from, for errors.

    Raises:
        ValueError: it cannot be told, or the columns are not of that kind.
    """
    names = ", ".join(targets)
    if kind not in ("auto", *KINDS):
        raise ValueError(f"kind={kind!r}: choose one of auto, {', '.join(KINDS)}.")
    if kind == "classification" and len(targets) > 1:
        raise ValueError(
            f"kind='classification' with the targets {names}: give one column of classes, or "
            "kind='multi-label' for several of 0 and 1."
        )
    if kind != "auto":
        return kind
    texts = [name for name, values in targets.items() if is_text(values)]
    if texts and len(targets) == 1:
        return "classification"
    if texts:
        raise ValueError(
            f"the targets {names} of {origin} are several, and {texts[0]!r} holds texts: give one "
            "column of classes, or several of numbers."
        )
    values = {number(x) for column in targets.values() for x in column}
    few = len(values) <= (2 if len(targets) > 1 else FEW)
    if few and all(x is not None and x.is_integer() for x in values):
        shown = ", ".join(sorted({name_of(x) for v in targets.values() for x in v})[:FEW])
        other = "classification" if len(targets) == 1 else "multi-label"
        raise ValueError(
            f"the target {names} of {origin} has only {shown}: say whether these are numbers, "
            f"kind='regression', or names, kind={other!r}."
        )
    return "regression"


def classes_of(column: Sequence[Any]) -> tuple[str, ...]:
    """The different classes of a column, in order."""
    return tuple(ordered(name_of(x) for x in column))


def check_classes(
    column: Sequence[Any], known: Sequence[str], rows: Sequence[int], origin: str
) -> None:
    """Check that a column has no other classes than a scaling knows.

    Args:
        column: of classes.
        known: the names of those that were there when the scaling was learned.
        rows: their places in the whole table, for errors.
        origin: where they come from, for errors.

    Raises:
        ValueError: it has.
    """
    if not known:
        raise ValueError(
            "scale= was learned of a table without classes that mean the same in all tasks, so "
            "that it does not say which number a class has: give the scaling of a table with "
            "kind='classification' and labels='table'."
        )
    names = {*known}
    i = next((i for i, x in enumerate(column) if name_of(x) not in names), None)
    if i is not None:
        raise ValueError(
            f"row {rows[i] + 1} of {origin} (the first row of data is 1) is of the class "
            f"{name_of(column[i])!r}, and scale= was learned of the classes "
            f"{', '.join(known[:20])}{', ...' * (len(known) > 20)}: leave such rows out, or train "
            "anew with all classes."
        )


def bits(columns: Columns, rows: Sequence[int], origin: str) -> list[list[float]]:
    """Columns of 0 and 1.

    Raises:
        ValueError: another value.
    """
    found = [numbers(name, values, rows, origin) for name, values in columns.items()]
    for name, values in zip(columns, found, strict=True):
        i = next((i for i, x in enumerate(values) if x not in (0.0, 1.0)), None)
        if i is not None:
            raise ValueError(
                f"row {rows[i] + 1} of {origin} (the first row of data is 1) has {values[i]:g} in "
                f"the column {name!r}, and kind='multi-label' has 0 and 1 alone."
            )
    return found
