"""`Sweep`: what `bench` measured, as a value, as tables, and as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmaml._files import write_whole
from fastmaml.measure.bench.accuracy import Learned
from fastmaml.measure.bench.budget import Fits, fits
from fastmaml.measure.bench.cells import Cell, finite
from fastmaml.measure.bench.exact import FLOAT64
from fastmaml.measure.bench.fit import by_series, later, memory_law, needed, time_laws
from fastmaml.measure.bench.price import Price, prices
from fastmaml.measure.bench.sizes import bytes_of
from fastmaml.measure.bench.table import Table, price_table, sweep_table

JSON, PNG = "bench.json", "bench.png"


@dataclass(frozen=True)
class Sweep:
    """What meta-steps cost by gradient method, inner steps, tasks, backend and executor.

    ``str()`` is the tables. Times are medians over turns, with their quartiles, and move with what
    else the machine does. Ratios of times are taken within rounds and keep still: of another sweep
    of the same on the same machine they are expected within the range of this one's turns.

    Attributes:
        title: what was given as such.
        model: the model's class, size and precision.
        device: where it ran, and on how many threads.
        versions: of fastmaml, Python and PyTorch.
        cells: one for each configuration that was reached.
        learned: what accuracies were asked for.
        vs: "first-order" where that table was asked for.
        budget: bytes for which `fits` is part of ``str()``; None for no such part.
        notes: what to know about the sweep.
        interrupted: whether it was stopped (Ctrl-C, SIGTERM), or is one that goes on; `cells` are
            those that were done.
    """

    model: str
    device: str
    versions: Mapping[str, str]
    cells: tuple[Cell, ...]
    learned: tuple[Learned, ...] = ()
    vs: str | None = None
    budget: int | None = None
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    title: str = ""

    def fits(self, budget: int | str) -> Fits:
        """The most inner steps, and tasks at once, of each method within `budget` bytes, or "8GB".

        The first meta-step is to fit as well, which needs more where it is recorded. From the
        measured cells where they tell, else from the law (`fastmaml.engine.memory.law.MemoryLaw`)
        fitted to them; each answer says which. The bytes are those of a meta-step: the model, the
        data and the optimizer's state come on top.

        Raises:
            ValueError: `budget` is no size.
        """
        return fits(self.cells, bytes_of(budget))

    @property
    def precision(self) -> str:
        """What the exact meta-gradients were computed in; of some, each cell says it."""
        return " or ".join(sorted({c.exact_in for c in self.cells if c.exact_in})) or FLOAT64

    @property
    def second_order(self) -> tuple[Price, ...]:
        """Every exact method beside `FirstOrder`, where both were measured."""
        return prices(self.cells, self.learned)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All configurations, and second order against first order where that was asked for."""
        found = [sweep_table(self.cells)]
        if self.vs is not None:
            found.append(price_table(self.second_order))
        return tuple(found)

    @property
    def heading(self) -> str:
        """A line that says what ran, where, and with which PyTorch."""
        title = f"{self.title}: " if self.title else ""
        return f"{title}{self.model}; {self.device}; torch {self.versions['torch']}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """The lines below the tables."""
        return tuple(self._remarks())

    def _remarks(self) -> Iterator[str]:
        for learned in self.learned:
            if learned.failure:
                name = "exact" if learned.exact else "first order"
                yield f"meta-training, {name}, K={learned.steps}: {learned.failure}"
        yield from self.notes
        if self.budget is not None:
            yield str(self.fits(self.budget))
        if self.interrupted:
            yield "interrupted: what is missing was not measured"

    def __str__(self) -> str:
        return "\n\n".join([self.heading, *map(str, self.tables), *_together(self.remarks)])

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: every turn, the fitted laws, and where it was measured."""
        laws = [
            {**series._asdict(), "of": of, **asdict(law)}
            for series, own in by_series(self.cells).items()
            for of, size in (("later calls", later), ("the largest call", needed))
            if (law := memory_law(own, size)) is not None
        ]
        found: dict[str, Any] = finite(
            {
                "title": self.title,
                "model": self.model,
                "device": self.device,
                "versions": dict(self.versions),
                "interrupted": self.interrupted,
                "exact_gradient": self.precision,
                "cells": [cell.as_dict() for cell in self.cells],
                "second_order": [price.as_dict() for price in self.second_order],
                "learned": [learned.as_dict() for learned in self.learned],
                "memory_laws": laws,
                "time_laws": [law.as_dict() for law in time_laws(self.cells)],
                "fits": None if self.budget is None else self.fits(self.budget).as_dict(),
                "notes": list(self.notes),
            }
        )
        return found

    def save(self, folder: Path | str) -> list[Path]:
        """Write ``bench.json`` and ``bench.png`` (time and memory, with the fitted growth).

        Args:
            folder: made if it is missing.

        Returns:
            What was written.

        Raises:
            ImportError: matplotlib is missing for the plot (``pip install "fastmaml[plot]"``); the
                JSON has been written.
        """
        folder = Path(folder)
        written = [self.save_numbers(folder)]
        if by_series(self.cells):
            from fastmaml.measure.bench.plots import plot_sweep

            plot_sweep(folder / PNG, self.cells, self.heading)
            written.append(folder / PNG)
        return written

    def save_numbers(self, folder: Path | str) -> Path:
        """Write ``bench.json`` alone, which takes the place of an earlier one in one step."""
        path = Path(folder) / JSON
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        write_whole(path, text.encode())
        return path


def _together(lines: tuple[str, ...]) -> list[str]:
    return ["\n".join(lines)] if lines else []
