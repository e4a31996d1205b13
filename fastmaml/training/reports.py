"""`Report`: what a run tells, and one that tells nothing, for all processes but the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from fastmaml.training.summary import Evaluation


class Report(ABC):
    """Where lines, stages and results of a run go."""

    @property
    @abstractmethod
    def lines(self) -> Sequence[dict[str, Any]]:
        """Of ``metrics.jsonl``."""

    @property
    @abstractmethod
    def plots(self) -> bool:
        """Whether pictures are wanted."""

    @abstractmethod
    def line(self, values: dict[str, Any]) -> None:
        """Add one line."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Print a line."""

    @abstractmethod
    def bar(self, what: str, done: int, total: int) -> Any:
        """Progress: a context that yields ``show(done, note)``."""

    @abstractmethod
    def stage(self, show: Callable[..., None], done: int, what: str) -> None:
        """Say what takes a while."""

    @abstractmethod
    def finish(
        self, test: Evaluation, result: dict[str, Any], title: str, more: Sequence[str] = ()
    ) -> None:
        """Tell of the final test."""

    @abstractmethod
    def stopping(self, name: str) -> None:
        """Say that a signal has arrived."""

    @abstractmethod
    def __enter__(self) -> Report:
        """Begin."""

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """End."""


@final
class Silent(Report):
    """Knows the lines, and tells nobody.

    Args:
        lines: those before.
    """

    plots = False

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        self._lines = list(lines)

    @property
    def lines(self) -> Sequence[dict[str, Any]]:
        """Of ``metrics.jsonl``."""
        return self._lines

    def line(self, values: dict[str, Any]) -> None:
        """Keep it."""
        self._lines.append(values)

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, what: str, done: int, total: int) -> Iterator[Callable[..., None]]:
        """Nothing to see."""
        yield lambda done, note="": None

    def stage(self, show: Callable[..., None], done: int, what: str) -> None:
        """Nothing."""

    def finish(
        self, test: Evaluation, result: dict[str, Any], title: str, more: Sequence[str] = ()
    ) -> None:
        """Nothing."""

    def stopping(self, name: str) -> None:
        """Nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""
