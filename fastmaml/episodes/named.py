"""Episodes whose tasks have names, so that results can be told apart by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, final

from torch import Tensor

from fastmaml.episodes.batch import Episodes
from fastmaml.episodes.source import EpisodeSource


@final
@dataclass(frozen=True)
class NamedEpisodes(Episodes):
    """A meta-batch that says what each task is called, for example its data set.

    Attributes:
        support, query: as of `Episodes`.
        names: one a task.

    Raises:
        ValueError: another number of names than of tasks, or as `Episodes`.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.names) != self.tasks:
            raise ValueError(f"names={self.names}: give one for each of the {self.tasks} tasks.")

    def __getitem__(self, index: int | slice) -> NamedEpisodes:
        """As of `Episodes`, with the names."""
        found = super().__getitem__(index)
        kept = self.names[index] if isinstance(index, slice) else (self.names[index],)
        return NamedEpisodes(found.support, found.query, kept, later=found.later)

    def map(self, function: Any) -> NamedEpisodes:
        """As of `Episodes`, with the names."""
        found = super().map(function)
        return NamedEpisodes(found.support, found.query, self.names, later=found.later)

    def to(self, *args: Any, **kwargs: Any) -> NamedEpisodes:
        """As of `Episodes`, with the names."""
        found = super().to(*args, **kwargs)
        return NamedEpisodes(found.support, found.query, self.names, later=found.later)


@final
class InTurn:
    """An infinite iterable of the meta-batches of several sources in turn, with their names.

    Tasks that have names of their own keep these behind their source's.

    Args:
        sources: by name.

    Raises:
        ValueError: there are no sources.
    """

    def __init__(self, sources: Mapping[str, EpisodeSource]) -> None:
        if not sources:
            raise ValueError("sources is empty: give at least one source of episodes, by name.")
        self.sources = dict(sources)
        self._next = 0

    def __iter__(self) -> Iterator[NamedEpisodes]:
        order = list(self.sources)
        for name in islice(cycle(order), self._next, None):
            self._next = (order.index(name) + 1) % len(order)
            found = self.sources[name].sample()
            own = found.names if isinstance(found, NamedEpisodes) else ()
            names = tuple(f"{name}: {task}" for task in own) or (name,) * len(found)
            yield NamedEpisodes(found.support, found.query, names, later=found.later)

    def state_dict(self) -> dict[str, Any]:
        """Where each stream is, and whose turn it is."""
        states = {name: source.state_dict() for name, source in self.sources.items()}
        return {"next": self._next, "sources": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: the state is of other sources.
        """
        saved: Mapping[str, Mapping[str, Tensor]] = state.get("sources", {})
        if saved.keys() != self.sources.keys():
            raise ValueError(
                f"this is a state of the sources {', '.join(saved) or 'of nothing'}, and these are "
                f"{', '.join(self.sources)}: resume with the same."
            )
        for name, source in self.sources.items():
            source.load_state_dict(saved[name])
        self._next = state["next"]
