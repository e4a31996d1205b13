"""Plots of results, each of which says which results it shows."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEY = "Results-SHA256"
"""The entry of a PNG's text that holds the hash of the JSON it was drawn from."""

Draw = Callable[[dict[str, Any], Any], None]
"""Takes a result and an empty matplotlib figure."""


def plot(results: Path, png: Path, draw: Draw) -> None:
    """Draw the results in a JSON file; without matplotlib, say so."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print(f'{png} not drawn: it needs matplotlib (pip install "fastmaml[plot]").')
        return
    figure = Figure(dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    draw(json.loads(results.read_text()), figure)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, metadata={KEY: digest(results)})


def figure_name(name: str, device: str) -> str:
    """Of the plot of a device's results, in docs; the CPU's has the results' own name."""
    return f"{name}.png" if device == "cpu" else f"{name}_{device}.png"


def digest(results: Path) -> str:
    """Of a JSON file's content."""
    return hashlib.sha256(results.read_bytes()).hexdigest()


def drawn_from(png: Path) -> str | None:
    """The hash of the results that a PNG shows; None where it says nothing."""
    for kind, content in _chunks(png.read_bytes()):
        name, _, value = content.partition(b"\0")
        if kind == b"tEXt" and name == KEY.encode():
            return value.decode()
    return None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every part of a PNG file."""
    at = 8
    while at + 8 <= len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        at += 12 + size
