"""Where the project's folders are, and the data beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
SUPPORT = ROOT / "tests" / "support"


def data_beside(*names: str) -> Path:
    """The folder of real data, or skip where one of these files is not in it."""
    folder = Path(os.environ.get("FASTMAML_DATA") or ROOT.parent / "shared" / "data")
    for name in names:
        if not (folder / name).exists():
            pytest.skip(f"no {name} in {folder}: set FASTMAML_DATA to where it is")
    return folder
