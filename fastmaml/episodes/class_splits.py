"""`split_classes`: the classes to train, validate and test on, which never overlap."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmaml.episodes.held_out import SPLITS, held_out
from fastmaml.episodes.image_listing import SPLIT_FOLDERS, as_utf8, plain_name

Splits = tuple[float, float, float] | Mapping[str, Any] | str | os.PathLike[str]
"""Fractions of the classes, names of each split, or a file or folder with them."""

FRACTIONS = (0.64, 0.16, 0.2)
"""Of miniImageNet's classes, for training, validation and testing."""


def split_classes(
    names: Sequence[str], own: Mapping[str, Sequence[str]] | None, splits: Splits | None, seed: int
) -> dict[str, list[str]]:
    """The classes of every split.

    Args:
        names: all of them.
        own: the splits that the data has itself; None for none.
        splits: as of `images`.
        seed: of the order in which fractions are held out.

    Raises:
        ValueError: fractions that do not sum to 1, an unknown class or split, a class in two
            splits, or a file that does not say them.
        FileNotFoundError: there is no such file.
    """
    if splits is None and own is not None:
        return _checked(own, names, "the data")
    if splits is None or isinstance(splits, tuple | list):
        return _by_fractions(names, FRACTIONS if splits is None else splits, seed)
    if isinstance(splits, Mapping):
        return _checked(splits, names, "splits")
    place = Path(splits).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"splits={str(splits)!r}: there is no such file. Give a .json file of lists, a .csv "
            "file with the columns class and split, or a folder with train.txt, val.txt, test.txt."
        )
    return _checked(_read(place), names, str(place))


def _by_fractions(names: Sequence[str], splits: Sequence[Any], seed: int) -> dict[str, list[str]]:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in splits)
    if len(splits) != 3 or not numbers or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise ValueError(
            f"splits={tuple(splits)!r}: give the fractions of the classes for training, validation "
            "and testing, which sum to 1, such as (0.64, 0.16, 0.2)."
        )
    validation, test = (round(len(names) * part) for part in splits[1:])
    return held_out(names, validation, test, seed)


def _checked(given: Mapping[str, Any], names: Sequence[str], origin: str) -> dict[str, list[str]]:
    known = {name: split for split, all_of in SPLIT_FOLDERS.items() for name in all_of}
    parts: dict[str, list[str]] = {}
    for key, of in given.items():
        if key not in known:
            raise ValueError(f"{origin} has the split {key!r}: choose of {', '.join(SPLITS)}.")
        if known[key] in parts:
            raise ValueError(f"{origin} has the split {known[key]!r} twice: keep one.")
        if isinstance(of, str) and of in names and not Path(of).expanduser().is_file():
            raise ValueError(
                f"{origin} has {of!r} for the split {key}, which is a class and no file of names: "
                f"give a list, [{of!r}]."
            )
        parts[known[key]] = _lines(of) if isinstance(of, str | os.PathLike) else list(of)
    there, seen = {plain_name(name): name for name in names}, dict[str, str]()
    for split, of in parts.items():
        parts[split] = [there.get(plain_name(name), name) for name in map(str, of)]
        for name in parts[split]:
            if plain_name(name) not in there:
                raise ValueError(
                    f"{origin} names {name!r} in the split {split}, which is no class of the data: "
                    f"it has {', '.join(list(names)[:10])}{', ...' if len(names) > 10 else ''}."
                )
            if name in seen:
                raise ValueError(
                    f"{origin} has the class {name!r} in the split {seen[name]} and in {split}: "
                    "keep it in one."
                )
            seen[name] = split
    if "train" not in parts:
        parts["train"] = [name for name in names if name not in seen]
    return {split: parts.get(split, []) for split in SPLITS}


def _read(place: Path) -> dict[str, Any]:
    """The names of each split in a file or folder."""
    if place.is_dir():
        found: dict[str, Any] = {
            name: place / f"{name}.txt"
            for of in SPLIT_FOLDERS.values()
            for name in of
            if (place / f"{name}.txt").is_file()
        }
        if not found:
            raise ValueError(
                f"{place} has no train.txt, val.txt or test.txt with names of classes."
            )
        return found
    if place.suffix.lower() == ".json":
        try:
            read = json.loads(place.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{place} is no JSON file: {error}.") from None
        if not isinstance(read, dict) or not all(isinstance(x, list) for x in read.values()):
            raise ValueError(f'{place} has to be of the form {{"train": ["cat", ...], ...}}.')
        return read
    if place.suffix.lower() != ".csv":
        raise ValueError(
            f"{place}: give a .json file, a .csv file, or a folder with train.txt, val.txt, "
            "test.txt."
        )
    with as_utf8(place), place.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines)
        columns = list(table.fieldnames or ())
        if not {"class", "split"} <= set(columns):
            raise ValueError(
                f"{place} has the columns {', '.join(columns) or '(none)'}; it needs class and "
                "split."
            )
        by_split: dict[str, Any] = {}
        for row in table:
            by_split.setdefault((row["split"] or "").strip(), []).append(
                (row["class"] or "").strip()
            )
    return by_split


def _lines(place: str | os.PathLike[str]) -> list[str]:
    path = Path(place).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"splits names the file {path}, which is not there.")
    with as_utf8(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]
