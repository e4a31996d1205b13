"""Numbers of bytes, as text."""

from __future__ import annotations

import math
import re

_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def size_text(size: float) -> str:
    """Such as "8.0 GB" or "12.3 MB"; 1 GB is 10⁹ bytes."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"


def bytes_of(text: str | int) -> int:
    """Bytes, from "8GB" (8·10⁹), "8GiB" (8·2³⁰), "500 MB" or "1e9".

    Args:
        text: such a size, or a number of bytes.

    Raises:
        ValueError: that is no size.
    """
    if type(text) is int and text >= 1:
        return text
    said = text.lower() if isinstance(text, str) else ""
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([a-z]*)\s*", said)
    try:
        size = float(found[1]) * _UNITS[found[2] or "b"] if found else 0.0
    except (KeyError, ValueError):
        size = 0.0
    if not 1 <= size < math.inf:
        raise ValueError(f"{text!r} is no size: write a number and a unit, such as 8GB or 500MiB.")
    return int(size)
