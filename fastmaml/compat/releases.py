"""What `importlib.metadata` says of a library in whose place a drop-in stands."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path


class Release(Distribution):
    """The release whose interface a drop-in has: packages ask for the version that they need."""

    def __init__(self, name: str, release: str) -> None:
        self._texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n"
            "Summary: provided by fastmaml.compat\n",
            "top_level.txt": f"{name}\n",
        }

    def read_text(self, filename: str) -> str | None:
        """The text of a metadata file, None where there is none of that name."""
        return self._texts.get(filename)

    def locate_file(self, path: object) -> Path:
        """Nothing of it is on disk by itself; relative to this folder if anything asks."""
        return Path(__file__).parent / str(path)
