"""Settings from a TOML file, and from words such as ``shots=5``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML file.

    Args:
        path: of the file, in UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"--config {path}: there is no such file. Give the path of a TOML file "
            "with lines such as `ways = 5`."
        ) from None
    except IsADirectoryError:
        raise ValueError(f"--config {path} is a folder: give a TOML file.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from None


def assignments(words: Iterable[str]) -> dict[str, Any]:
    """The keys and values of words such as ``shots=5``; what is no TOML value is a string.

    Raises:
        ValueError: a word without "=".
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is no setting: write NAME=VALUE, such as shots=5.")
        try:
            found |= _parsed(f"{key}={value}")
        except ValueError:
            found[key] = value
    return found


def _parsed(text: str) -> dict[str, Any]:
    # Here, as Python 3.10 has none of its own and importing fastmaml needs torch only.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
