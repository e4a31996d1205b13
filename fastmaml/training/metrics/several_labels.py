"""Metrics of several labels an example, each a question of yes or no."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fastmaml.losses import logits_of
from fastmaml.training.metrics.answers import Answers
from fastmaml.training.metrics.base import Metric


@dataclass(frozen=True)
class SeveralLabels(Metric):
    """Of targets that are 0 or 1, as binary cross-entropy takes them, one or several an example.

    Yes is a logit above 0: a model with a sigmoid of its own would say yes to everything. What the
    targets are, these metrics cannot see: one label of several classes as ones and zeros, under a
    cross-entropy, is none of theirs.
    """

    kinds = ("regression", "other")  # which targets of numbers look like

    def value(self, answers: Answers) -> float | None:
        """None where targets are not of 0 and 1 alone, or the logits not of their number."""
        right, logits = answers.targets, logits_of(answers.output)
        if logits is None or not isinstance(right, Tensor) or not right.is_floating_point():
            return None
        if right.ndim == 0 or logits.numel() != right.numel():
            return None
        if not ((right == 0) | (right == 1)).all():
            return None
        said = logits.reshape(right.shape) > 0
        return self.of(said.flatten(1) if right.ndim > 1 else said[:, None], right > 0)

    @abstractmethod
    def of(self, said: Tensor, right: Tensor) -> float:
        """From bool ``[examples, labels]``: what the model says, and what is so."""


@final
@dataclass(frozen=True)
class LabelAccuracy(SeveralLabels):
    """The share of right answers among all labels of all examples."""

    name = "label_accuracy"

    def of(self, said: Tensor, right: Tensor) -> float:
        """Of all alike."""
        return (said == right.reshape(said.shape)).double().mean().item()


@final
@dataclass(frozen=True)
class LabelF1(SeveralLabels):
    """F1 over all labels of all examples together (micro), as scikit-learn's ``f1_score`` has it.

    Where there is no yes, and the model says none, all is right: that counts as 1.
    """

    name = "label_f1"

    def of(self, said: Tensor, right: Tensor) -> float:
        """Twice the yes that both have, over the yes of each."""
        both = (said & right.reshape(said.shape)).sum().item()
        either = said.sum().item() + right.sum().item()
        return 2 * both / either if either else 1.0


@final
@dataclass(frozen=True)
class LabelMatch(SeveralLabels):
    """The share of examples whose labels are all right."""

    name = "label_match"

    def of(self, said: Tensor, right: Tensor) -> float:
        """Of whole examples."""
        return (said == right.reshape(said.shape)).all(1).double().mean().item()
