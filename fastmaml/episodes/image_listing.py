"""Which images there are, and of which class: a folder of class folders, or a table of paths."""

from __future__ import annotations

import csv
import os
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastmaml.episodes.pictures import Files

ENDINGS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
"""What folders of splits, and splits in tables, are called."""

_OF_SYSTEMS = {"thumbs.db", "desktop.ini"}
_Found = tuple[str, str, Path]
"""Name, class and path of an image."""


def listed(place: Path) -> Files:
    """The images of a folder or of a table.

    Raises:
        FileNotFoundError: there is no such folder, or a table names a file that is not there.
        ValueError: there are no images, or not in folders of classes; a class that is there twice.
    """
    place = place.expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"there is no {place}: give a folder with a folder of images for each class, or a .csv "
            "file with the columns path and label."
        )
    if place.is_file():
        return _of_table(place)
    splits = _split_folders(place)
    if not splits:
        return _files(place, list(_classes(place, place)), None)
    found, parts = [], {}
    for split, folder in splits.items():
        own = list(_classes(folder, place))
        parts[split] = list(dict.fromkeys(of for _, of, _ in own))
        found += own
    _no_class_twice(parts, place)
    return _files(place, found, parts)


def _split_folders(place: Path) -> dict[str, Path]:
    """Folders of splits that hold folders of classes, where all that lies there are such."""
    inside = {path.name: path for path in place.iterdir() if path.is_dir() and not _hidden(path)}
    known = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    if "train" not in inside or not set(inside) <= set(known) or len(inside) < 2:
        return {}
    if not any(_folders(path) for path in inside.values()):
        return {}  # classes that are called "train" and "test"
    splits: dict[str, Path] = {}
    for name, path in sorted(inside.items()):
        if known[name] in splits:
            raise ValueError(
                f"{place} has the folders {splits[known[name]].name} and {name}, both for "
                f"{known[name]}: keep one."
            )
        splits[known[name]] = path
    return {split: splits[split] for split in SPLIT_FOLDERS if split in splits}


def _classes(folder: Path, place: Path) -> Iterator[_Found]:
    """The images of the class folders in `folder`, in the order of names."""
    others = [path for path in folder.iterdir() if path.is_file() and not _hidden(path)]
    for path in _folders(folder):
        images = []
        for file in sorted(path.iterdir()):
            if file.is_dir() and not _hidden(file):
                raise ValueError(
                    f"{file} is a folder in the folder of the class {path.name}: put a class's "
                    "images into one folder, or name each image's class in a .csv file with the "
                    "columns path and label."
                )
            if file.suffix.lower() in ENDINGS and not _hidden(file):
                images.append(file)
            elif not _hidden(file):
                others.append(file)
        if not images:
            raise ValueError(
                f"{path} has no images (known endings: {', '.join(sorted(ENDINGS))}). Remove that "
                "folder, or put the images of a class there."
            )
        yield from ((str(file.relative_to(place)), path.name, file) for file in images)
    if others:
        more = f" and {len(others) - 1} more files were" if len(others) > 1 else " was"
        warnings.warn(
            f"{others[0]}{more} left out: no images of a class, by their name and place.",
            stacklevel=2,
        )


def listed_files(place: Path, tables: Mapping[str, Path], folder: Path) -> Files:
    """The images of a folder that tables name, one for each split.

    Args:
        place: of all that, for errors.
        tables: of every split, with the columns ``filename`` and ``label``.
        folder: of the images.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: a column is missing, or a class is in two splits.
    """
    found, parts = [], {}
    for split, table in tables.items():
        _, rows = _rows(table, ",", ("filename", "label"))
        found += [(row["filename"], row["label"], folder / row["filename"]) for row in rows]
        parts[split] = list(dict.fromkeys(row["label"] for row in rows))
    _no_class_twice(parts, place)
    return _files(place, found, parts)


def _of_table(file: Path) -> Files:
    """The images of a .csv or .tsv file, whose paths are seen from its folder."""
    divided = {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower())
    if divided is None:
        raise ValueError(
            f"{file} is no folder and no .csv or .tsv file: give a folder of class folders, or a "
            "table with the columns path and label."
        )
    columns, rows = _rows(file, divided, ("path", "label"))
    found, seen = [], dict[str, int]()
    parts: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        path, label = row["path"] or "", (row["label"] or "").strip()
        if not path or not label:
            raise ValueError(f"line {number} of {file} has no path or no label: complete it.")
        real = os.path.realpath(file.parent / path)  # "./1.png" is "1.png"
        if real in seen:
            raise ValueError(f"lines {seen[real]} and {number} of {file} name {path}: keep one.")
        seen[real] = number
        found.append((path, label, file.parent / path))
        if "split" in columns:
            parts.setdefault(_split_named(row["split"], number, file), []).append(label)
    own = {split: list(dict.fromkeys(names)) for split, names in parts.items()}
    _no_class_twice(own, file)
    return _files(file, sorted(found, key=lambda one: (one[1], one[0])), own or None)


def _rows(
    file: Path, divided: str, needed: Sequence[str]
) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a table."""
    with as_utf8(file), file.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines, delimiter=divided)
        columns = list(table.fieldnames or ())
        if missing := [name for name in needed if name not in columns]:
            raise ValueError(
                f"{file} has no column {missing[0]!r}, but {', '.join(columns) or 'nothing'}: its "
                f"first line has to name the columns {' and '.join(needed)}, and split where it "
                "has one."
            )
        return columns, list(table)


@contextmanager
def as_utf8(file: Path) -> Iterator[None]:
    """What is read inside is named where its letters are in another encoding."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not in UTF-8 (byte 0x{error.object[error.start]:02x}): save it as that."
        ) from error


def _split_named(name: str | None, number: int, file: Path) -> str:
    for split, names in SPLIT_FOLDERS.items():
        if (name or "").strip().lower() in names:
            return split
    raise ValueError(
        f"line {number} of {file} has the split {name!r}: write train, validation or test."
    )


def _files(place: Path, found: Sequence[_Found], parts: dict[str, list[str]] | None) -> Files:
    if not found:
        raise ValueError(
            f"{place} has no images: it needs a folder with images for each class, such as "
            f"{place / 'cat' / '1.png'}, or be a .csv file with the columns path and label."
        )
    plain: dict[str, str] = {}
    for of in dict.fromkeys(of for _, of, _ in found):
        same = plain.setdefault(plain_name(of), of)
        if same != of:
            raise ValueError(
                f"{place} has the classes {same!r} and {of!r}, which read alike: give them one "
                "name, or names that differ."
            )
    stats = []
    for name, _, path in found:
        if not path.is_file():
            raise FileNotFoundError(f"{place} names {name}, but there is no file {path}.")
        stat = path.stat()
        stats.append((stat.st_size, stat.st_mtime_ns))
    names, classes, paths = zip(*found, strict=True)
    return Files(str(place), names, classes, paths, stats, parts)


def plain_name(name: str) -> str:
    """What a class's name reads like: "é" may be one character or two, as systems write it."""
    return unicodedata.normalize("NFC", name.strip())


def _no_class_twice(parts: dict[str, list[str]], place: Path) -> None:
    seen: dict[str, str] = {}
    for split, names in parts.items():
        for name in names:
            if name in seen:
                raise ValueError(
                    f"{place} has the class {name!r} in the split {seen[name]} and in {split}: a "
                    "meta-learner is judged on classes that it has never seen, so keep it in one."
                )
            seen[name] = split


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path))


def _hidden(path: Path) -> bool:
    return path.name.startswith((".", "__")) or path.name.lower() in _OF_SYSTEMS
