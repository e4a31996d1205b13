"""What the classes of labelled texts are called, and which number each label means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

Label = int | float | str

_WITH_POINT = re.compile(r"-?[0-9]+\.0")
"""A whole number as pandas writes it where some rows of a column have none."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_WITH_PLACES = re.compile(r"[+-]?[0-9]+\.[0-9]*")


def name_of(label: Label) -> str:
    """What a class is called: whole numbers alike, however a file writes them.

    1, 1.0, "1" and "1.0" are all "1"; true and false are "True" and "False", and no numbers.
    """
    if isinstance(label, str):
        whole = label.endswith(".0") and _WITH_POINT.fullmatch(label) is not None
        return label.removesuffix(".0") if whole else label
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def names_of(labels: Sequence[Label], origin: str) -> list[str]:
    """The class of every label of one column.

    Args:
        labels: as they were read.
        origin: where they come from, for errors.

    Raises:
        ValueError: a label that is no text and no number, truth values beside others, or texts
            that differ only in how they write a number ("1" and "1.0").
    """
    kinds = {type(x): x for x in labels}
    odd = next((x for kind, x in kinds.items() if not issubclass(kind, str | int | float)), None)
    if odd is not None:
        raise ValueError(
            f"{origin} has the label {odd!r}, a {type(odd).__name__}: a label is a text or a "
            "number. Choose another column with label=."
        )
    if bool in kinds and len(kinds) > 1:
        other = next(x for kind, x in kinds.items() if kind is not bool)
        raise ValueError(
            f"{origin} has the labels {kinds[bool]!r} and {other!r}: write either truth values or "
            "something else in all rows."
        )
    texts = {x for x in labels if isinstance(x, str)}
    twice = next((x for x in sorted(texts) if name_of(x) != x and name_of(x) in texts), None)
    if twice is not None:
        raise ValueError(
            f"{origin} has the labels {name_of(twice)!r} and {twice!r}: if they are one class, "
            "write it in one way; if they are two, give them names that are no numbers."
        )
    return [name_of(x) for x in labels]


def ordered(names: Iterable[str]) -> list[str]:
    """The different names: as numbers in order if all are integers, else as text."""
    found = sorted(set(names))
    whole = all(name.removeprefix("-").isdecimal() for name in found)
    return sorted(found, key=int) if whole else found


@final
@dataclass(frozen=True)
class ClassNames:
    """The classes of a task, in the order of their numbers 0, 1, ...

    Attributes:
        names: as `name_of` gives them.
        origin: the data whose labels they are; empty where they were given.
    """

    names: tuple[str, ...]
    origin: str = ""

    @staticmethod
    def found_in(labels: Sequence[Label], origin: str) -> ClassNames:
        """All that occur.

        Raises:
            ValueError: all labels are numbers, and some no whole ones; or as `names_of`.
        """
        names = ordered(names_of(labels, origin))
        broken = next(filter(_WITH_PLACES.fullmatch, names), None)
        if broken is not None and all(map(_NUMBER.fullmatch, names)):
            raise ValueError(
                f"{origin} has numbers such as {broken} as labels: give value_range=(low, high) "
                "for a regression, or classes= where these are the names of classes."
            )
        return ClassNames(tuple(names), origin)

    @staticmethod
    def given(classes: Sequence[Label]) -> ClassNames:
        """Those that the user gave.

        Raises:
            ValueError: one text in place of a list, or a class twice.
        """
        if isinstance(classes, str):
            raise ValueError(f"classes={classes!r} is one text: give a list of the names.")
        names = [name_of(x) for x in classes]
        twice = next((x for x in names if names.count(x) > 1), None)
        if twice is not None:
            raise ValueError(f"classes={list(classes)} names the class {twice!r} twice.")
        return ClassNames(tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    def numbers(self, labels: Sequence[Label], origin: str) -> list[int]:
        """The number of each label's class.

        A label is the name of a class. Where the names were given and none looks like a number, a
        column may have the classes' numbers instead, in all its rows.

        Args:
            labels: of one column.
            origin: where they come from, for errors.

        Raises:
            ValueError: a label that is no class, names beside numbers, or as `names_of`.
        """
        found = names_of(labels, origin)
        numbers = {name: i for i, name in enumerate(self.names)}
        by_number = {} if self._only_names else {str(i): i for i in range(len(self))}
        for name, label in zip(found, labels, strict=True):
            if name not in numbers and name not in by_number:
                raise ValueError(
                    f"{origin} has the label {label!r}, which is none of the classes "
                    f"{self.listed()}{self._way_out()}"
                )
        kinds = {name in numbers: label for name, label in zip(found, labels, strict=True)}
        if len(kinds) > 1:
            raise ValueError(
                f"{origin} has the label {kinds[True]!r}, the name of a class, and the label "
                f"{kinds[False]!r}, the number of one of {self.listed()}: write the names in all "
                "rows, or the numbers in all."
            )
        numbers |= by_number
        return [numbers[name] for name in found]

    @property
    def _only_names(self) -> bool:
        """Whether a number would not be known for the number of a class."""
        return bool(self.origin) or any(map(_NUMBER.fullmatch, self.names))

    def listed(self) -> str:
        """The names, or the first of very many."""
        more = ", ..." if len(self) > 20 else ""
        return f"{', '.join(self.names[:20])}{more}"

    def _way_out(self) -> str:
        leave_out = "Leave out rows that are of no class (rows=, query_rows=)"
        if self.origin:
            return (
                f", those that occur in {self.origin}. {leave_out}, or give all classes with "
                "classes=, in the order of their numbers."
            )
        if self._only_names:
            return (
                " (which are names: as some look like numbers, no label is read as the number of "
                f"a class). {leave_out}, or give all classes with classes=."
            )
        return (
            f", and no number from 0 to {len(self) - 1} of one. {leave_out}, or give all classes "
            "with classes=."
        )
