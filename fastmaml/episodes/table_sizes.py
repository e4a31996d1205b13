"""How many rows of a task are in its support and in its query set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

Shots = int | float | tuple[int, int]
Queries = int | Literal["rest"]


@final
@dataclass(frozen=True)
class Sizes:
    """The rule by which a task's rows are divided.

    Attributes:
        shots: support rows: a number, a share of the task's rows, or the least and the most.
        queries: query rows: a number, or all others.

    Raises:
        ValueError: a value that is none of these.
    """

    shots: Shots
    queries: Queries

    def __post_init__(self) -> None:
        if not _is_shots(self.shots):
            raise ValueError(
                f"shots={self.shots!r}: give a number of rows such as 5, a share of a task's rows "
                "between 0 and 1 such as 0.5, or the least and the most such as (5, 20)."
            )
        if self.queries != "rest" and not _positive(self.queries):
            raise ValueError(
                f"queries={self.queries!r}: give a number of rows, or 'rest' for all that are not "
                "in the support set."
            )

    @property
    def alike(self) -> bool:
        """Whether all tasks have sets of one size."""
        return isinstance(self.shots, int) and self.queries != "rest"

    @property
    def least(self) -> int:
        """How many rows a task has to have."""
        return self._fewest + self._asked

    @property
    def _asked(self) -> int:
        return 1 if self.queries == "rest" else int(self.queries)

    @property
    def _fewest(self) -> int:
        """The fewest support rows."""
        if isinstance(self.shots, tuple):
            return self.shots[0]
        return self.shots if isinstance(self.shots, int) else 1

    def smallest_support(self, rows: int) -> int:
        """Of a task with so many rows, the fewest that its support set may have."""
        if isinstance(self.shots, float):
            return int(self._shared(torch.tensor([rows])))
        return self._fewest

    def largest(self, rows: int) -> tuple[int, int]:
        """The most rows of a support and of a query set, where no task has more than `rows`."""
        most = self.smallest_support(rows)
        if isinstance(self.shots, tuple):
            most = min(self.shots[1], rows - self._asked)
        rest = rows - self.smallest_support(rows)
        return most, rest if self.queries == "rest" else self._asked

    def drawn(
        self, rows: Tensor, generator: torch.Generator, together: bool
    ) -> tuple[Tensor, Tensor]:
        """The sizes of support and query sets.

        Args:
            rows: int64 ``[tasks]``, on the CPU, of each at least `least`.
            generator: on the CPU, for shots between two numbers.
            together: whether one number of shots is drawn for all, which then have equal rows.

        Returns:
            Two int64 ``[tasks]``.
        """
        if isinstance(self.shots, tuple):
            low, high = self.shots
            most = (rows - self._asked).clamp(max=high)
            unit = torch.rand(1 if together else len(rows), generator=generator)
            support = (low + (unit * (most - low + 1)).long()).clamp(max=most)
        elif isinstance(self.shots, int):
            support = torch.full_like(rows, self.shots)
        else:
            support = self._shared(rows)
        rest = rows - support
        return support, rest if self.queries == "rest" else torch.full_like(rows, self._asked)

    def _shared(self, rows: Tensor) -> Tensor:
        """A share of the rows, of which one at least is there and as many as queries take not."""
        share = (rows.double() * float(self.shots)).round().long()  # type: ignore[arg-type]
        return torch.minimum(share.clamp(min=1), rows - self._asked)


def filled_up_to(size: int, most: int) -> int:
    """The size that sets of at most `size` rows are filled up to, one of a few.

    It is `most`, or that halved once or several times: few sizes are recorded, and less than half
    of the largest set is filled up.
    """
    while -(-most // 2) >= size and most > 1:
        most = -(-most // 2)
    return most


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_shots(shots: Any) -> bool:
    if isinstance(shots, float):
        return 0 < shots < 1
    if isinstance(shots, tuple):
        return len(shots) == 2 and all(map(_positive, shots)) and shots[0] <= shots[1]
    return _positive(shots)
