"""`Report`: what `profile` found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from fastmaml._files import write_whole

Cell = float | str
"""A number, or why there is none."""


@final
@dataclass(frozen=True)
class Quantiles:
    """The median of repeated measurements, and their quartiles, in the unit of these.

    Attributes:
        median: half of them lie below it.
        lower: a quarter of them lies below it.
        upper: a quarter of them lies above it.
    """

    median: float
    lower: float
    upper: float

    @staticmethod
    def of(values: Sequence[float]) -> Quantiles:
        """Interpolated between the sorted values."""
        ordered = sorted(values)

        def at(share: float) -> float:
            place = share * (len(ordered) - 1)
            low = int(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (place - low) * (ordered[high] - ordered[low])

        return Quantiles(at(0.5), at(0.25), at(0.75))


@final
@dataclass(frozen=True)
class Phase:
    """A phase of the meta-step; a cell that is a string says why there is no number.

    Attributes:
        name: of the phase.
        seconds: its share of the step's wall time: the mean over the half of the profiled steps
            that are nearest to their median.
        share: of the profiled step.
        calls: of operators, views not counted; each is a kernel launch or more on a GPU.
        flops: of matrix products, convolutions and attention.
        of_peak: FLOPs a second, as a share of what the machine was measured to reach.
        peak_bytes: the most that was alive at once while the phase ran.
        retained_bytes: the most that it had made and that was alive while it was over.
    """

    name: str
    seconds: Cell
    share: Cell
    calls: Cell
    flops: Cell
    of_peak: Cell
    peak_bytes: Cell
    retained_bytes: Cell


@final
@dataclass(frozen=True)
class Timeline:
    """Live memory over one step, while it was followed.

    Attributes:
        seconds: since the step began; following it takes several times as long as the step.
        phases: that it was in.
        bytes: live, by the phase in which they were made.
    """

    seconds: tuple[float, ...]
    phases: tuple[str, ...]
    bytes: Mapping[str, tuple[int, ...]]


@final
@dataclass(frozen=True)
class Report:
    """What a meta-step costs and where; ``print(report)`` shows it as a table.

    Attributes:
        title: of what was profiled.
        phases: in their order; their seconds add up to those of a profiled step.
        step_seconds: of the plain step: the user's own `MAML`, nothing watched.
        profiled_seconds: of the step with marks between its phases, measured in turn with it.
        tasks_per_second: of the plain step.
        peak_bytes: memory of the step at its peak, beyond what was there before it.
        peak_how: how that was measured.
        resident_bytes: the same from the process's resident memory; on a GPU, none.
        peak_flops: FLOPs a second that the machine was measured to reach, or why not.
        peak_flops_how: in doing what.
        setting: device, versions, model, executor, backend, gradient method and the reasons.
        notes: what else has to be known to read the numbers.
        timeline: live memory over the step; None where it cannot be seen.
        files: what was asked for besides, by file name; `save` writes them.
    """

    title: str
    phases: tuple[Phase, ...]
    step_seconds: Quantiles
    profiled_seconds: Quantiles
    tasks_per_second: float
    peak_bytes: Cell
    peak_how: str
    resident_bytes: Cell
    peak_flops: Cell
    peak_flops_how: str
    setting: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    timeline: Timeline | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def overhead(self) -> float:
        """What the marks cost, as a share of the plain step, of medians; noise may make it less."""
        return self.profiled_seconds.median / self.step_seconds.median - 1

    @property
    def marked_seconds(self) -> float:
        """What the phases add up to, the rest among them."""
        return sum(p.seconds for p in self.phases if not isinstance(p.seconds, str))

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        found = {phase.name: phase for phase in self.phases}
        if name not in found:
            raise ValueError(f"phase {name!r}: this report has {', '.join(found)}.")
        return found[name]

    def __str__(self) -> str:
        from fastmaml.measure.profile.table import as_text

        return as_text(self)

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain dicts and lists, for JSON."""
        found = {k: v for k, v in asdict(self).items() if k != "files"}
        return found | {"overhead": self.overhead, "marked_seconds": self.marked_seconds}

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``profile.json``, ``profile.png`` and what was asked for besides.

        Args:
            folder: made if it is missing.

        Returns:
            What was written.

        Raises:
            ImportError: the PNG needs matplotlib; everything else is written.
        """
        folder = Path(folder)
        content = {"profile.json": (json.dumps(self.as_dict(), indent=1) + "\n").encode()}
        content |= self.files
        for name, data in content.items():
            write_whole(folder / name, data)
        from fastmaml.measure.profile.picture import draw

        write_whole(folder / "profile.png", draw(self))
        return [folder / name for name in (*content, "profile.png")]
