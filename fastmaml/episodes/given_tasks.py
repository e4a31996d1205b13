"""`GivenTasks`: meta-batches of support and query sets that are as they were given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fastmaml.episodes.batch import Batch
from fastmaml.episodes.named import NamedEpisodes
from fastmaml.episodes.source import EpisodeSource
from fastmaml.episodes.text_task import Labels
from fastmaml.episodes.tokens import Tokens


@final
@dataclass(frozen=True)
class LabelledRows:
    """A support or query set, as rows of a table of many texts.

    Attributes:
        rows: int64 ``[examples]``.
        labels: ``[examples]``: classes, int64, or the values of a regression, float32.
    """

    rows: Tensor
    labels: Tensor


@final
@dataclass(frozen=True)
class PlacedTask:
    """A task whose texts are rows of a table of many.

    Attributes:
        name: for reports.
        labels: what they mean.
        support, query: its sets.
    """

    name: str
    labels: Labels
    support: LabelledRows
    query: LabelledRows

    @property
    def sizes(self) -> tuple[int, int]:
        """Support and query examples."""
        return len(self.support.rows), len(self.query.rows)


@final
class GivenTasks(EpisodeSource):
    """Meta-batches of tasks as they were given; `given` makes it.

    Iterated over, it is endless, pass after pass. `once` is a single pass. ``len()`` is the number
    of tasks: how many episodes to evaluate on. Inputs and targets are as those of `Mixture`; a
    meta-batch is a `NamedEpisodes` with the tasks' names. Texts are padded to the longest of all
    sets of the same kind and size, support and query apart, so that meta-batches have few shapes.

    Args:
        tasks: in order.
        tokens: of all texts, whose rows their sets are.
        tasks_per_batch, shuffle, seed, device: as of `given`.
    """

    def __init__(
        self,
        tasks: Sequence[PlacedTask],
        tokens: Tokens,
        *,
        tasks_per_batch: int,
        shuffle: bool,
        seed: int,
        device: torch.device | str | None,
    ) -> None:
        super().__init__(seed, device or "cpu")
        self.tasks_per_batch, self.shuffle = tasks_per_batch, shuffle
        self.names = tuple(task.name for task in tasks)
        self._tasks, self._tokens = list(tasks), tokens.to(device)
        self._lengths = self._padded()
        self._position, self._started = 0, self.generator.get_state()
        self._pass = self._order()

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self._tasks)

    def sample(self) -> NamedEpisodes:
        """The next meta-batch; after the last of a pass, the first of the next one."""
        if self._position == len(self._pass):
            self._position, self._started = 0, self.generator.get_state()
            self._pass = self._order()
        self._position += 1
        return self._episodes(self._pass[self._position - 1])

    def once(self) -> Iterator[NamedEpisodes]:
        """Every task once, in the order in which they were given; the endless stream stays."""
        return map(self._episodes, self._batches(list(range(len(self)))))

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream is: ``generator`` at the beginning of the pass, and the ``position``."""
        return {"generator": self._started.clone(), "position": torch.tensor(self._position)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken, of the same tasks.

        Raises:
            ValueError: the state is not of such a source, or of one with other tasks.
        """
        position = state.get("position")
        if position is None or position.numel() != 1 or position < 0:
            raise ValueError(
                "this is no state of given tasks: it needs 'generator' and 'position', as "
                "state_dict() returns them."
            )
        super().load_state_dict(state)
        self._started = self.generator.get_state()
        self._pass = self._order()
        if position > len(self._pass):
            raise ValueError(
                f"this is a state after {int(position)} meta-batches of a pass, and these "
                f"{len(self)} tasks make {len(self._pass)}: resume with the same tasks and "
                "tasks_per_batch."
            )
        self._position = int(position)

    def _order(self) -> list[list[int]]:
        """The tasks of every meta-batch of a pass."""
        if not self.shuffle:
            return self._batches(list(range(len(self))))
        order = torch.randperm(len(self), generator=self.generator, device=self.device)
        batches = self._batches(order.tolist())
        order = torch.randperm(len(batches), generator=self.generator, device=self.device)
        return [batches[i] for i in order.tolist()]

    def _batches(self, order: list[int]) -> list[list[int]]:
        """Tasks of equal sizes together, else as in `order`."""
        alike: dict[tuple[int, int], list[int]] = {}
        for i in order:
            alike.setdefault(self._tasks[i].sizes, []).append(i)
        most = self.tasks_per_batch
        return [
            group[first : first + most]
            for group in alike.values()
            for first in range(0, len(group), most)
        ]

    def _padded(self) -> dict[tuple[int, int], tuple[int, int]]:
        """The padded lengths of support and query sets, of tasks of each sizes."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for task in self._tasks:
            before = found.get(task.sizes, (0, 0))
            own = (self._tokens.padded_length(part.rows) for part in (task.support, task.query))
            support, query = (max(pair) for pair in zip(before, own, strict=True))
            found[task.sizes] = support, query
        return found

    def _episodes(self, chosen: list[int]) -> NamedEpisodes:
        tasks = [self._tasks[i] for i in chosen]
        classes = torch.tensor([[task.labels.classes] for task in tasks], device=self.device)
        support, query = self._lengths[tasks[0].sizes]
        return NamedEpisodes(
            self._batch([task.support for task in tasks], classes, support),
            self._batch([task.query for task in tasks], classes, query),
            tuple(task.name for task in tasks),
        )

    def _batch(self, sets: list[LabelledRows], classes: Tensor, length: int) -> Batch:
        labels = [_or_zeros(one.labels, torch.int64) for one in sets]
        values = [_or_zeros(one.labels, torch.float32) for one in sets]
        targets = {
            "labels": torch.stack(labels).to(self.device),
            "values": torch.stack(values).to(self.device),
            "classes": classes,
        }
        return Batch(self._tokens.batch(torch.stack([one.rows for one in sets]), length), targets)

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(self.names))
        return f"GivenTasks({len(self)} tasks: {names}, tasks_per_batch={self.tasks_per_batch})"


def _or_zeros(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels of this type; zeros in place of others."""
    return labels if labels.dtype == dtype else torch.zeros_like(labels, dtype=dtype)
