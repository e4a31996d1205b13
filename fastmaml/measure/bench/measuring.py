"""`Measuring`: the cells of a sweep, one after the other, and then in rounds."""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.measure.bench.cells import Cell, Configuration
from fastmaml.measure.bench.configured import in_configuration
from fastmaml.measure.bench.exact import Exact, Reference, distance
from fastmaml.measure.bench.failure_text import reason_of
from fastmaml.measure.bench.measure import (
    check_room,
    explained,
    first_call,
    gradient,
    peak,
    peak_allocated,
    reserved,
    turn,
)

LEAST_TURNS = 3
"""Turns of every configuration, however long they take."""

LONGEST_TURN = 0.25
"""Seconds; a turn of a meta-step that takes longer is one call."""

Progress = Callable[[str], None]


class Measuring:
    """Measures configurations on copies of the user's `MAML`.

    Each configuration first gets its first call, its memory, its meta-gradient and one turn of
    meta-steps. Then, on the CPU, they take turns in rounds, so that a slow moment of the machine
    hits all alike; those replace the one turn. On CUDA each takes its turns in a row and is let go:
    the CUDA graphs of all would not fit at once.

    Args:
        twin: a copy of the user's.
        episodes: at least as many tasks as any configuration has.
        configurations: in order.
        repeats: turns of each.
        seconds: that the rounds may take together.
        progress: is told what is being measured.
        done: is called after every cell and every round.
    """

    def __init__(
        self,
        twin: MAML,
        episodes: Episodes,
        configurations: Sequence[Configuration],
        repeats: int,
        seconds: float,
        progress: Progress,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.twin, self.episodes, self.configurations = twin, episodes, configurations
        self.repeats, self.seconds, self.progress, self.done = repeats, seconds, progress, done
        self.exact = Exact(twin)
        self.cells: list[Cell] = []
        self._running: dict[int, MAML] = {}
        self._device = next(twin.parameters()).device
        self._turn = min(LONGEST_TURN, seconds / (repeats * len(configurations)))

    def run(self) -> None:
        """All of it; `cells` holds what is done, also where this is interrupted."""
        for _, same in itertools.groupby(self.configurations, lambda c: (c.tasks, c.steps)):
            group = list(same)
            episodes = self.episodes[: group[0].tasks]
            self.progress(f"exact meta-gradient, {group[0].tasks} tasks, {group[0].steps} steps")
            exact = self.exact.gradient(episodes, group[0].steps)
            for configuration in group:
                self._begin(configuration, episodes, exact)
                self.done()
        self._rounds()

    def _begin(
        self, configuration: Configuration, episodes: Episodes, exact: Reference | None
    ) -> None:
        number = len(self.cells)
        c = configuration
        self.progress(
            f"{number + 1} of {len(self.configurations)}: {c.method}, {c.steps} steps, {c.tasks} "
            f"tasks, backend {c.series.backend}, executor {c.series.executor}"
        )
        try:
            cell, maml = self._begun(c, episodes, exact)
        except Exception as error:
            self.cells.append(Cell(c, refusal=reason_of(error)))
        else:
            self.cells.append(cell)
            if self._device.type != "cuda":
                self._running[number] = maml
            del maml
        gc.collect()  # what has failed, or is let go, is not to count in the next one's memory

    def _begun(self, c: Configuration, episodes: Episodes, exact: Reference | None) -> Any:
        """The cell with all but the rounds, and the `MAML` that takes part in those."""

        def made() -> MAML:
            return in_configuration(self.twin, c.gradient, c.steps, c.backend, c.executor)

        check_room(made(), episodes)  # another, so that the first call below has to plan as well
        maml, before = made(), reserved(self._device)
        first = first_call(maml, episodes)
        how = explained(maml, episodes)
        maml.zero_grad()
        if self._device.type == "cuda":
            held = 0 if c.executor == "eager" else reserved(self._device) - before
            memory = peak_allocated(maml, episodes, first.size, held)
        else:
            memory = peak(made(), episodes, how)
        apart = None if exact is None else distance(gradient(maml, episodes), exact.gradient)
        turns = self.repeats if self._device.type == "cuda" else 1
        cell = Cell(
            c,
            first_call=first.seconds,
            turns=tuple(turn(maml, episodes, self._turn) for _ in range(turns)),
            peak_bytes=memory.size,
            first_peak_bytes=memory.first,
            memory=memory.how,
            tasks_at_once=how.tasks_at_once,
            error=None if apart is None else apart.error,
            cosine=None if apart is None else apart.cosine,
            exact_in="" if exact is None else exact.precision,
            explanation=how.lines,
        )
        maml.zero_grad()
        return cell, maml

    def _rounds(self) -> None:
        begin, order = time.perf_counter(), random.Random(0)
        for past in range(self.repeats if self._running else 0):
            spent = time.perf_counter() - begin
            needed = spent * (past + 1) / max(past, 1)
            if past >= LEAST_TURNS and needed > self.seconds:
                return
            self.progress(f"round {past + 1} of {self.repeats}")
            running = list(self._running.items())
            # What else the machine does may come at regular times: nobody is always at the same.
            order.shuffle(running)
            for number, maml in running:
                cell = self.cells[number]
                episodes = self.episodes[: cell.configuration.tasks]
                try:
                    found = turn(maml, episodes, self._turn)
                except Exception as error:
                    self.cells[number] = replace(cell, refusal=reason_of(error))
                    del self._running[number]
                else:
                    turns = (*cell.turns, found) if cell.in_rounds else (found,)
                    self.cells[number] = replace(cell, turns=turns, in_rounds=True)
                maml.zero_grad()
            self.done()
