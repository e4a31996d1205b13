"""Metrics of predicted tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch.nn import functional as F

from fastmaml.training.metrics.answers import IGNORED, Answers
from fastmaml.training.metrics.base import Metric


@final
@dataclass(frozen=True, kw_only=True)
class ExactMatch(Metric):
    """The share of examples whose every token to predict is the likeliest one.

    The tokens before each are the right ones (teacher forcing): an example counts just where greedy
    decoding would give its answer, token by token. Examples with nothing to predict do not count.

    Args:
        shifted: whether the logits at a position are of the next one's label, as those of causal
            language models.
    """

    shifted: bool
    name = "exact_match"
    kinds = ("tokens",)

    def value(self, answers: Answers) -> float | None:
        """None where no token is to be predicted."""
        logits, labels, there = answers.tokens(self.shifted)
        right = ((logits.argmax(-1) == labels) | ~there).all(1)[there.any(1)]
        return right.double().mean().item() if right.numel() else None


@final
@dataclass(frozen=True, kw_only=True)
class Perplexity(Metric):
    """e to the mean negative log-likelihood of the task's tokens to predict.

    An evaluation averages the tasks' perplexities, not their logarithms.

    Args:
        shifted: as of `ExactMatch`.
    """

    shifted: bool
    name = "perplexity"
    kinds = ("tokens",)
    lower_is_better = True

    def value(self, answers: Answers) -> float | None:
        """None where no token is to be predicted."""
        logits, labels, there = answers.tokens(self.shifted)
        if not there.any():
            return None
        precise = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits[there].to(precise), labels[there]).double().exp().item()


@final
@dataclass(frozen=True, kw_only=True)
class Option(Metric):
    """The share of questions whose right option is the likeliest one.

    How likely an option is: the mean log-likelihood of its tokens, so that long ones do not lose by
    their length. Of episodes with every option of a question, as
    ``fastmaml.episodes.instructions(choose=True)`` makes them.

    Args:
        shifted: as of `ExactMatch`.
    """

    shifted: bool
    name = "option"
    kinds = ("tokens",)

    def value(self, answers: Answers) -> float | None:
        """None where the targets hold no options."""
        options = answers.options
        if options is None:
            return None
        logits, labels, there = answers.tokens(self.shifted, options)
        right = answers.targets["right"]
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = F.cross_entropy(
            precise.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        mean = each.view_as(labels).sum(1) / there.sum(1).clamp(min=1)
        mean = torch.where(there.any(1), mean, torch.inf)  # where there is no such option
        found = mean.view(len(right), -1).argmin(1)
        return (found == right).double().mean().item()
