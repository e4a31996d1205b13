"""`tell` and `stage`: what is about to be looked for or done, which may take a while."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from fastmaml.episodes.tables import is_hub_name
from fastmaml.training.ranks import writes


def stage(what: str) -> None:
    """Say what is about to be done, which may take a while, as the progress bar comes later."""
    if writes():
        print(f"fastmaml: {what}", file=sys.stderr, flush=True)


@functools.cache
def tell(what: str, name: str) -> None:
    """Print a line, once, where that is no file or folder and the hub may be asked.

    Without the internet the hub's client tries again for half a minute, in its own words.
    """
    offline = {os.environ.get(f"{x}_OFFLINE", "0").upper() for x in ("HF_HUB", "TRANSFORMERS")}
    asked = offline.isdisjoint({"1", "ON", "YES", "TRUE"})
    if writes() and asked and is_hub_name(name) and not Path(name).expanduser().exists():
        print(
            f"fastmaml: looking for the {what} {name!r} on the Hugging Face hub (without the "
            "internet, HF_HUB_OFFLINE=1 looks at once in what was fetched before).",
            file=sys.stderr,
            flush=True,
        )
