"""What an evaluation measures of every task, besides accuracy or loss."""

from fastmaml.training.metrics.answers import IGNORED, Answers, Kind
from fastmaml.training.metrics.base import Metric
from fastmaml.training.metrics.choice import Choice, Metrics, chosen, of_next_tokens, suited
from fastmaml.training.metrics.labels import F1, Accuracy, Loss, Matthews
from fastmaml.training.metrics.several_labels import (
    LabelAccuracy,
    LabelF1,
    LabelMatch,
    SeveralLabels,
)
from fastmaml.training.metrics.tokens import ExactMatch, Option, Perplexity
from fastmaml.training.metrics.values import Pearson, RootMeanSquare, Spearman

__all__ = [
    "F1",
    "IGNORED",
    "Accuracy",
    "Answers",
    "Choice",
    "ExactMatch",
    "Kind",
    "LabelAccuracy",
    "LabelF1",
    "LabelMatch",
    "Loss",
    "Matthews",
    "Metric",
    "Metrics",
    "Option",
    "Pearson",
    "Perplexity",
    "RootMeanSquare",
    "SeveralLabels",
    "Spearman",
    "chosen",
    "of_next_tokens",
    "suited",
]
