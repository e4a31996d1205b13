"""Numbers of ways and shots as they are written: 5, a range such as 5-20, or meta-dataset."""

from __future__ import annotations

from fastmaml.episodes.sizes import Number, check_number

META_DATASET = "meta-dataset"


def number(name: str, value: int | str, *words: str) -> int | str:
    """`value` as a number where it is one, else the text that it was.

    Args:
        name: for errors.
        value: a number, a range such as "5-20", or one of `words`.
        words: that mean something else.

    Raises:
        ValueError: it is none of these.
    """
    if value in words:
        return value
    read = range_of(name, value, *words)
    return read if isinstance(read, int) else str(value)


def range_of(name: str, value: int | str, *words: str) -> Number:
    """The number, or the smallest and the largest.

    Raises:
        ValueError: as of `number`.
    """
    try:
        parts = [int(part) for part in str(value).split("-")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2):
        ways_out = "".join(f", or {word!r}" for word in words)
        raise ValueError(f"{name}={value!r}: give a number, a range such as 5-20{ways_out}.")
    found = parts[0] if len(parts) == 1 else (parts[0], parts[1])
    check_number(name, found)
    return found
