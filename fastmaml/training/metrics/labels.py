"""Metrics of classes, and the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fastmaml.training.metrics.answers import Answers
from fastmaml.training.metrics.base import Metric, scikit_learn


@final
@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """The share of right answers: of examples, or where tokens are predicted, of these.

    Args:
        shifted: where tokens are predicted, whether the logits at a position are of the next one's
            label, as those of causal language models.
    """

    shifted: bool
    name = "accuracy"
    kinds = ("classification", "tokens")

    def value(self, answers: Answers) -> float | None:
        """None where no token is to be predicted."""
        if answers.kind == "tokens":
            logits, labels, there = answers.tokens(self.shifted)
            right = (logits.argmax(-1) == labels)[there]
        else:
            right = answers.predicted == answers.labels
        return right.double().mean().item() if right.numel() else None


@final
@dataclass(frozen=True)
class F1(Metric):
    """scikit-learn's ``f1_score``: of class 1 where there are two, else the classes' mean (macro).

    That mean is over the classes that occur, as labels or as answers. A class that is never
    answered, or never right, has 0.
    """

    name = "f1"
    kinds = ("classification",)

    def __post_init__(self) -> None:
        scikit_learn(self.name)

    def value(self, answers: Answers) -> float:
        """From the answers' classes."""
        average = "binary" if answers.classes == 2 else "macro"
        right, said = answers.labels.cpu().numpy(), answers.predicted.cpu().numpy()
        f1_score = scikit_learn(self.name).f1_score
        return float(f1_score(right, said, average=average, zero_division=0.0))


@final
@dataclass(frozen=True)
class Matthews(Metric):
    """scikit-learn's ``matthews_corrcoef``: from -1 to 1, and 0 for answers as by chance.

    Where all answers or all labels are alike, it is not defined: that counts as 0.
    """

    name = "matthews"
    kinds = ("classification",)

    def __post_init__(self) -> None:
        scikit_learn(self.name)

    def value(self, answers: Answers) -> float:
        """From the answers' classes."""
        right, said = answers.labels.cpu().numpy(), answers.predicted.cpu().numpy()
        if (right == right[0]).all() or (said == said[0]).all():
            return 0.0  # as scikit-learn has it, which warns of a single class
        return float(scikit_learn(self.name).matthews_corrcoef(right, said))


@final
@dataclass(frozen=True)
class Loss(Metric):
    """The query loss that the `MAML` computes, of tasks of any kind."""

    name = "loss"
    lower_is_better = True

    def value(self, answers: Answers) -> float:
        """As it was computed."""
        return answers.loss
