"""What a verification found, as a value and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ROWS = 8
"""Parameters that the table shows, those that differ most."""


@dataclass(frozen=True)
class Difference:
    """How far two tensors are apart.

    Attributes:
        name: "loss", or the parameter's.
        size: the largest absolute entry of the reference's.
        absolute: the largest absolute difference of two entries.
        relative: that in units of the largest entry of the reference's whole meta-gradient (of the
            loss itself, for the loss), so that a gradient that is zero but for rounding agrees.
    """

    name: str
    size: float
    absolute: float
    relative: float


@dataclass(frozen=True)
class Verification:
    """What `verify` found; ``str()`` is the table that it prints.

    Attributes:
        loss: of the meta-loss; None where the reference returned none.
        gradients: of each parameter's meta-gradient, in the model's order.
        second_order: how far the first-order meta-gradient (`FirstOrder`) is from the one that was
            checked, relative as in `Difference`. Where this is below the tolerance, the check
            cannot tell an exact meta-gradient from a first-order one.
        tolerance: the largest relative difference that counts as equal.
        dtype: what it was computed in.
        notes: what was not compared, and where the two differ, what that looks like.
    """

    loss: Difference | None
    gradients: tuple[Difference, ...]
    second_order: float
    tolerance: float
    dtype: torch.dtype
    notes: tuple[str, ...]

    @property
    def worst(self) -> Difference:
        """The parameter whose meta-gradient differs most."""
        return max(self.gradients, key=_badness)

    @property
    def agrees(self) -> bool:
        """Whether every relative difference is within the tolerance."""
        found = self.gradients if self.loss is None else (self.loss, *self.gradients)
        return all(d.relative <= self.tolerance for d in found)

    def __str__(self) -> str:
        shown = sorted(self.gradients, key=_badness, reverse=True)[:ROWS]
        left = len(self.gradients) - len(shown)
        title = f"meta-gradient in {str(self.dtype).removeprefix('torch.')}"
        rows = [self.loss, *shown] if self.loss else shown
        width = max(len(title), *(len(row.name) for row in rows))
        return "\n".join(
            [
                f"{title:<{width}}{'largest':>12}{'difference':>12}{'relative':>12}",
                *(
                    f"{d.name:<{width}}{d.size:>12.4g}{d.absolute:>12.1e}{d.relative:>12.1e}"
                    for d in rows
                ),
                *([f"({left} more parameters, which differ less)"] if left else []),
                f"{'equal' if self.agrees else 'DIFFERENT'}: the largest relative difference is "
                f"{self.worst.relative:.1e}, of {self.worst.name}; tolerance {self.tolerance:.1e}",
                f"first order alone would differ by {self.second_order:.1e}",
                *self.notes,
            ]
        )


def _badness(difference: Difference) -> float:
    return math.inf if math.isnan(difference.relative) else difference.relative
