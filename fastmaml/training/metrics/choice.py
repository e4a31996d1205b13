"""`chosen`: which metrics are meant, of all tasks or of each data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from fastmaml import losses
from fastmaml.training.metrics.answers import Kind
from fastmaml.training.metrics.base import Metric
from fastmaml.training.metrics.labels import F1, Accuracy, Loss, Matthews
from fastmaml.training.metrics.several_labels import LabelAccuracy, LabelF1, LabelMatch
from fastmaml.training.metrics.tokens import ExactMatch, Option, Perplexity
from fastmaml.training.metrics.values import Pearson, RootMeanSquare, Spearman

Some = str | Metric | Iterable[str | Metric]

Metrics = Some | Mapping[str, Some]
"""Names, divided by commas or in a list, or `Metric` objects; or such by the name of a data set."""

NAMED: dict[str, Callable[[bool], Metric]] = {
    "accuracy": lambda shifted: Accuracy(shifted=shifted),
    "f1": lambda _: F1(),
    "matthews": lambda _: Matthews(),
    "label_accuracy": lambda _: LabelAccuracy(),
    "label_f1": lambda _: LabelF1(),
    "label_match": lambda _: LabelMatch(),
    "rmse": lambda _: RootMeanSquare(),
    "pearson": lambda _: Pearson(),
    "spearman": lambda _: Spearman(),
    "exact_match": lambda shifted: ExactMatch(shifted=shifted),
    "option": lambda shifted: Option(shifted=shifted),
    "perplexity": lambda shifted: Perplexity(shifted=shifted),
    "loss": lambda _: Loss(),
}
"""Those that have a name, given whether logits are of the next token, as of causal models."""

_TAKEN = {
    *("return", "interval_95", "no_adaptation", "no_adaptation_interval_95", "chance", "names"),
    *("episodes", "steps", "per_step", "per_step_interval_95", "scores", "by_name", "over_names"),
}
"""What else results have by these names."""


@final
@dataclass(frozen=True)
class Choice:
    """The metrics of every task.

    Attributes:
        everywhere: of all tasks.
        by_name: of the tasks of each name; None where all have the same.
    """

    everywhere: tuple[Metric, ...] = ()
    by_name: Mapping[str, tuple[Metric, ...]] | None = None

    def of(self, name: str | None) -> tuple[Metric, ...]:
        """Those of a task of this name; of one without a name, None."""
        if self.by_name is None:
            return self.everywhere
        return () if name is None else self.by_name.get(name, ())

    @property
    def lower(self) -> frozenset[str]:
        """The names of those of which less is better."""
        groups = [self.everywhere] if self.by_name is None else self.by_name.values()
        return frozenset(x.name for group in groups for x in group if x.lower_is_better)

    @property
    def names(self) -> list[str]:
        """What they are called, each once."""
        groups = [self.everywhere] if self.by_name is None else self.by_name.values()
        return list(dict.fromkeys(metric.name for group in groups for metric in group))


def chosen(metrics: Metrics | Choice | None, shifted: bool = True) -> Choice:
    """The metrics that are meant.

    Args:
        metrics: names or objects; None for none. A choice stays as it is.
        shifted: where names mean metrics of tokens, whether the logits at a position are of the
            next one's label, as those of causal language models.

    Raises:
        ValueError: a name that is unknown, one that is there twice, or none.
        ImportError: what computes one of them is missing.
    """
    if isinstance(metrics, Choice):
        return metrics
    if metrics is None:
        return Choice()
    if isinstance(metrics, Mapping):
        return Choice(by_name={name: _some(given, shifted) for name, given in metrics.items()})
    return Choice(_some(metrics, shifted))


def of_next_tokens(maml: Any) -> bool:
    """Whether a model predicts the next token at each place, as causal language models do.

    Args:
        maml: whose query loss (`losses.seq2seq`, `losses.token_classification`) or model (one
            with an encoder and a decoder) says that it is the token in the same place.
    """
    loss = maml.loss if maml.query_loss is None else maml.query_loss
    same_place = loss in (losses.seq2seq, losses.token_classification)
    config = getattr(maml.module, "config", None)
    return not same_place and getattr(config, "is_encoder_decoder", False) is not True


def _some(given: Some, shifted: bool) -> tuple[Metric, ...]:
    if isinstance(given, str):
        given = [word.strip() for word in given.split(",") if word.strip()]
    listed = [given] if isinstance(given, Metric) else list(given)
    found = tuple(_metric(one, shifted) for one in listed)
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"metrics has the names {names}: give at least one of {', '.join(NAMED)}, each once."
        )
    return found


def _metric(given: str | Metric, shifted: bool) -> Metric:
    if isinstance(given, Metric):
        return _own(given)
    if given not in NAMED:
        raise ValueError(
            f"metrics has {given!r}: choose from {', '.join(NAMED)}, or give an object of a class "
            "made of fastmaml.training.metrics.Metric."
        )
    return NAMED[given](shifted)


def _own(metric: Metric) -> Metric:
    known = NAMED.get(metric.name)
    if metric.name in _TAKEN or (known is not None and type(known(True)) is not type(metric)):
        raise ValueError(
            f"a {type(metric).__name__} has the name {metric.name!r}, which means something else "
            "in results: give it another one."
        )
    return metric


def suited(metrics: Some, kinds: Mapping[str, Kind], shifted: bool = True) -> Choice:
    """Of every data set, those metrics that are of its kind of task.

    Args:
        metrics: names or objects.
        kinds: by the name of a data set.
        shifted: as of `chosen`.

    Raises:
        ValueError: a metric that is of none of them; or as `chosen`.
    """
    found = chosen(metrics, shifted).everywhere
    for metric in found:
        if not set(metric.kinds) & set(kinds.values()):
            raise ValueError(not_suited(metric, set(kinds.values())))
    by_name = {
        name: tuple(metric for metric in found if kind in metric.kinds)
        for name, kind in kinds.items()
    }
    return Choice(by_name=by_name)


def not_suited(metric: Metric, kinds: set[Kind]) -> str:
    """What to say of a metric that none of the tasks, which are of these kinds, has."""
    if kinds & set(metric.kinds):
        return f"metrics has {metric.name!r}, which found nothing to measure in any of these tasks."
    return (
        f"metrics has {metric.name!r}, which is of {' or '.join(metric.kinds)}, and these tasks "
        f"are {' or '.join(sorted(kinds))}: leave it out, or name the data sets that it is of."
    )
