"""Metrics of predicted tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch.nn import functional as F

from fastmaml.training.metrics.answers import Answers
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

    def value(self, answers: Answers) -> float | None:
        """None where no token is to be predicted."""
        logits, labels, there = answers.tokens(self.shifted)
        if not there.any():
            return None
        precise = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits[there].to(precise), labels[there]).double().exp().item()
