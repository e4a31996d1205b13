"""The flags of ``fastmaml export`` and ``fastmaml adapt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Export:
    """Write what a run with a language model has learned, as transformers and peft load it."""

    checkpoint: Positional[Path]
    """A checkpoint that `fastmaml train` wrote, or its folder."""
    to: Path
    """Folder for the model, or for its adapters where these alone were learned."""
    overwrite: bool = False
    """Replace the model that is in that folder."""


@dataclass(frozen=True)
class Adapt:
    """Adapt what a run with a language model has learned to a new task, and write the result."""

    checkpoint: Positional[Path]
    """A checkpoint that `fastmaml train` wrote, or its folder."""
    data: str
    """The task's examples, in the form that the run was trained on."""
    to: Path
    """Folder for the adapted model, or for its adapters where these alone adapt."""
    overwrite: bool = False
    """Replace the model that is in that folder."""
    test_data: str | None = None
    """Other examples of the task, on which each inner step is tested."""
    limit: int | None = None
    """No more examples than this (none: all; they are taken together)."""
    steps: int | None = None
    """Inner steps (none: as in the run's own test)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    change: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    """Settings other than the run's, such as prompt=question or text=review."""
