"""`Answers`: what an adapted model gives for the query set of one task, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import torch
from torch import Tensor

from fastmaml.losses import IGNORED, logits_of, masked, of_right_options

Kind = Literal["classification", "regression", "tokens", "other"]
"""What a task asks for: a class or a number for every example, tokens, or something else."""

KINDS: tuple[Kind, ...] = ("classification", "regression", "tokens", "other")


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """An adapted model's answers to the query set of one task.

    Attributes:
        output: what the model returned, of this task alone: ``[examples, ...]``, without graphs.
        targets: the task's query targets.
        loss: the task's query loss.
    """

    output: Any
    targets: Any
    loss: float

    @cached_property
    def kind(self) -> Kind:
        """What the task asks for, by its targets and the shape of the logits.

        "classification"
            integers ``[examples]`` and logits ``[examples, classes]``; or the targets of
            `fastmaml.losses.classification` with at least 2 ``classes``.
        "regression"
            floating targets and outputs of one number an example; or the targets of
            `fastmaml.losses.classification` with 1 of ``classes``.
        "tokens"
            integers ``[examples, length]`` and logits ``[examples, length, vocabulary]``.
        "other"
            anything else.

        Integers may stand by themselves or as ``labels`` of a dict.
        """
        logits, targets = logits_of(self.output), self.targets
        if logits is None:
            return "other"
        if isinstance(targets, Mapping) and "classes" in targets:
            return "regression" if self.classes == 1 else "classification"
        labels = targets.get("labels") if isinstance(targets, Mapping) else targets
        if not isinstance(labels, Tensor) or labels.is_complex() or labels.dtype == torch.bool:
            return "other"
        if labels.is_floating_point():
            single = labels.ndim > 0 and labels.numel() == len(labels) == logits.numel()
            return "regression" if single else "other"
        if logits.shape[:-1] != labels.shape:
            return "other"
        if labels.ndim == 1 and logits.shape[1] > 1:
            return "classification"
        return "tokens" if labels.ndim == 2 else "other"

    @property
    def logits(self) -> Tensor:
        """The model's logits, whatever holds them.

        Raises:
            ValueError: it returned none.
        """
        found = logits_of(self.output)
        if found is None:
            raise ValueError(f"a {type(self.output).__name__}, which the model gave, has no logits")
        return found

    @cached_property
    def classes(self) -> int:
        """How many classes the task has; 1 for a regression of `losses.classification`."""
        if isinstance(self.targets, Mapping) and "classes" in self.targets:
            return int(self.targets["classes"])
        return self.logits.shape[-1]

    @property
    def labels(self) -> Tensor:
        """The right classes ``[examples]``, or tokens ``[examples, length]``: integers.

        Where every option of a question has a row, the tokens of wrong ones do not count.
        """
        if self.options is not None:
            return of_right_options(self.targets)
        found: Tensor = (
            self.targets["labels"] if isinstance(self.targets, Mapping) else self.targets
        )
        return found

    @property
    def options(self) -> Tensor | None:
        """The tokens of all options ``[questions·options, length]``; None where none are given."""
        given = isinstance(self.targets, Mapping) and "right" in self.targets
        return self.targets["labels"] if given else None

    @cached_property
    def predicted(self) -> Tensor:
        """int64 ``[examples]``: the likeliest of the task's own classes."""
        logits = self.logits
        return masked(logits, torch.tensor([self.classes], device=logits.device)).argmax(-1)

    @property
    def values(self) -> Tensor:
        """float64 ``[examples]``: what a regression is to give."""
        found = self.targets["values"] if isinstance(self.targets, Mapping) else self.targets
        return found.flatten().double()

    @property
    def predicted_values(self) -> Tensor:
        """float64 ``[examples]``: what it gives; of several logits the first."""
        return self.logits.reshape(len(self.logits), -1)[:, 0].double()

    def tokens(self, shifted: bool, labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[examples, length, vocabulary]``, the labels of these, and which count.

        Args:
            shifted: whether the logits at a position are of the next one's label, as those of
                causal language models; else they are of its own. The length is one less then.
            labels: of the tokens; None for the right ones.

        Returns:
            The logits, the labels ``[examples, length]``, and bool of that shape, False where the
            label is `IGNORED`.
        """
        logits, labels = self.logits, self.labels if labels is None else labels
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return logits, labels, labels != IGNORED
