"""From what was measured to the rows of a `Report`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fastmaml.measure.profile.phases import (
    INSIDE,
    OPTIMIZER,
    PHASES,
    RECOMPUTED,
    REST,
    SAMPLING,
    WHOLE,
)
from fastmaml.measure.profile.report import Cell, Phase, Timeline
from fastmaml.measure.profile.spans import Spans
from fastmaml.measure.profile.steps import Step
from fastmaml.measure.profile.watch import Counts, Sample, Watch

MAX_SAMPLES = 600
"""Moments of a timeline; of those in between, the ones with most memory stay."""

NO_SOURCE = "not measured: a fixed meta-batch was given"
NO_OPTIMIZER = "not measured: no optimizer was given"
NOTHING_AGAIN = "this gradient method runs no inner step again"
OPAQUE = (
    "not visible: the meta-step is one program of Inductor's, in which phases cannot be told "
    "apart nor operators followed; use executor='captured' to see them"
)


def rows_of(
    step: Step, marked: Sequence[Spans], watch: Watch, opaque: bool, peak_flops: Cell
) -> tuple[Phase, ...]:
    """A row for each phase.

    Args:
        step: what was run.
        marked: the timed steps.
        watch: of the one that was followed.
        opaque: whether phases could not be told apart.
        peak_flops: the machine's, or why it is not known.
    """
    seconds, wall = _middle(marked)
    missing: dict[str, str] = {}
    if not step.samples:
        missing[SAMPLING] = NO_SOURCE
    if step.optimizer is None:
        missing[OPTIMIZER] = NO_OPTIMIZER
    if RECOMPUTED not in seconds:
        missing[RECOMPUTED] = NOTHING_AGAIN
    if opaque:  # what is left of the meta-backward is handing out the gradient
        missing |= dict.fromkeys(INSIDE, OPAQUE)
        seconds[REST] += sum(seconds.pop(phase, 0.0) for phase in INSIDE)
    rows = []
    for name in PHASES:
        if name == WHOLE and not opaque:
            continue
        if name in missing:
            rows.append(Phase(name, *[missing[name]] * 7))
            continue
        rows.append(_row(name, seconds.get(name, 0.0), wall, watch, opaque, peak_flops))
    return tuple(rows)


def _row(
    name: str, seconds: float, wall: float, watch: Watch, opaque: bool, peak_flops: Cell
) -> Phase:
    share = seconds / wall
    if opaque:
        return Phase(name, seconds, share, *[OPAQUE] * 5)
    counts = watch.counts.get(name, Counts())
    flops: Cell = counts.flops
    of_peak = peak_flops
    if not isinstance(peak_flops, str):
        of_peak = counts.flops / seconds / peak_flops if seconds > 0 else 0.0
    if counts.unknown:
        flops = of_peak = f"no formula for {', '.join(sorted(counts.unknown))}"
    return Phase(
        name, seconds, share, counts.calls, flops, of_peak, counts.peak_bytes, counts.retained_bytes
    )


def _middle(marked: Sequence[Spans]) -> tuple[dict[str, float], float]:
    """Mean seconds by phase, and of the step, over the half nearest to the median."""
    ordered = sorted(marked, key=lambda spans: spans.wall)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    each = [spans.seconds() for spans in middle]
    found = {p: statistics.fmean(one.get(p, 0.0) for one in each) for p in set().union(*each)}
    return found, statistics.fmean(spans.wall for spans in middle)


def timeline_of(watch: Watch) -> Timeline:
    """The memory of each phase over the step, in at most `MAX_SAMPLES` samples."""
    chosen = _thinned(watch.samples)
    names = [p for p in PHASES if any(sample.bytes.get(p) for sample in chosen)]
    return Timeline(
        tuple(sample.seconds for sample in chosen),
        tuple(sample.phase for sample in chosen),
        {name: tuple(sample.bytes.get(name, 0) for sample in chosen) for name in names},
    )


def _thinned(samples: Sequence[Sample]) -> list[Sample]:
    width = -(-len(samples) // MAX_SAMPLES)
    groups = [samples[i : i + width] for i in range(0, len(samples), width)]
    return [max(group, key=lambda sample: sample.total) for group in groups]
