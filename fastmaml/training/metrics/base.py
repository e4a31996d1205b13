"""`Metric`: what can be said of one task's answers in a number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType

from fastmaml.training.metrics.answers import KINDS, Answers, Kind


@dataclass(frozen=True)
class Metric(ABC):
    """A number that says how good an adapted model's answers to one task are.

    An evaluation averages it over tasks. One of your own has a name, says of which kinds of tasks
    it is, and computes its value:

        >>> @dataclass(frozen=True)
        ... class TopTwo(fm.training.metrics.Metric):
        ...     name = "top_two"
        ...     kinds = ("classification",)
        ...
        ...     def value(self, answers):
        ...         best = answers.logits.topk(2).indices
        ...         return (best == answers.labels[:, None]).any(1).float().mean().item()
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in tables and files."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of tasks that it is of, by default all; see `Answers.kind`."""
        return KINDS

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller number is a better one, as of a loss; not, by default."""
        return False

    @abstractmethod
    def value(self, answers: Answers) -> float | None:
        """The number of one task, which is of one of `kinds`.

        Args:
            answers: what the adapted model gives for the task's query set, and what is right.

        Returns:
            None where there is nothing to measure in this task: it is then left out. A nan is
            kept, and makes the mean over tasks nan.
        """


def scikit_learn(of: str) -> ModuleType:
    """``sklearn.metrics``.

    Args:
        of: the metric that needs it, for the error.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ImportError(_missing(of, "scikit-learn")) from error
    found: ModuleType = metrics
    return found


def scipy_stats(of: str) -> ModuleType:
    """``scipy.stats``, which comes with scikit-learn; as `scikit_learn`."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(_missing(of, "scipy")) from error
    found: ModuleType = stats
    return found


def _missing(metric: str, package: str) -> str:
    return (
        f"the metric {metric!r} is computed by {package}, which is not installed: "
        'pip install "fastmaml[text]", or choose metrics without it.'
    )
