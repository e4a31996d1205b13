"""Losses of one task: classes whose number may differ from task to task, tokens, values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Targets",
    "causal",
    "classification",
    "counted",
    "counted_rows",
    "logits_of",
    "masked",
    "of_right_options",
    "own",
    "regression",
    "seq2seq",
    "token_classification",
]

IGNORED = -100
"""The label of what does not count, as PyTorch's losses of labels have it by default."""

Targets = Tensor | Mapping[str, Tensor]
"""Labels, or those of a mixture of data sets; see `classification`."""


def classification(output: Any, targets: Targets) -> Tensor:
    """Cross-entropy of one task, or its squared error where it is a regression.

    Args:
        output: logits ``[examples, classes]``, or what holds them as ``logits``, as a model of
            transformers returns.
        targets: int64 labels ``[examples]``. Or, where the tasks of a meta-batch are data sets
            with different numbers of classes, a dict of ``labels``, int64 ``[examples]``,
            ``values``, floating ``[examples]``, and ``classes``, int64 ``[1]``: with at least 2
            classes, the cross-entropy over that many first logits; with 1, the mean of
            (logits[:, 0] - values)². Examples with the label -100 do not count.

    Returns:
        A scalar; nan, and its gradient too, where a task has more classes than there are logits.
        (`MAML` raises an error that names both numbers; on a GPU that is seen at the first call.)

    Raises:
        ValueError: the output has no logits ``[examples, classes]``.
    """
    logits = logits_of(output)
    if logits is None or logits.ndim != 2:
        got = type(output).__name__ if logits is None else f"logits of shape {list(logits.shape)}"
        raise ValueError(
            f"fastmaml.losses.classification was given {got}; the model has to return logits "
            "[examples, classes], as a tensor or as its output's `logits`."
        )
    if isinstance(targets, Tensor):
        return F.cross_entropy(logits, targets)
    classes = targets["classes"]
    right = F.cross_entropy(masked(logits, classes), targets["labels"])
    error = (logits[:, 0] - targets["values"].to(logits.dtype)).square().mean()
    found = torch.where(classes.squeeze(-1) == 1, error, right)
    # Values cannot be looked at here, as this may be batched or recorded.
    few = classes.squeeze(-1) > logits.shape[1]
    return found * torch.where(few, torch.nan, torch.ones_like(found))


def causal(output: Any, targets: Targets) -> Tensor:
    """The mean negative log-likelihood of the next tokens, of one task's texts.

    The logits of each place are for the token after it. The mean is over all tokens of the task
    that count, so long answers weigh more than short ones.

    Args:
        output: logits ``[examples, length, vocabulary]``, or what holds them as ``logits``.
        targets: int64 ``[examples, length]``, the token of each place (not moved by one), and -100
            where it does not count. Or a dict of such ``labels`` ``[questions·options, length]``
            and ``right`` ``[questions]``, of which only the right options' tokens count.

    Returns:
        A scalar in the logits' dtype (of bfloat16 about three digits); nan where no token counts.

    Raises:
        ValueError: logits and labels do not fit.
    """
    labels = targets if isinstance(targets, Tensor) else of_right_options(targets)
    # Moving the labels spares a copy of the logits, which are many times as large.
    return _per_token("causal", output, F.pad(labels[:, 1:], (0, 1), value=-100))


def seq2seq(output: Any, targets: Targets) -> Tensor:
    """The same of a model with an encoder, whose decoder is given the tokens one place later.

    Args:
        output: as of `causal`; the logits of each place are for the token in that place.
        targets: as of `causal`.

    Returns:
        A scalar; nan where no token counts.

    Raises:
        ValueError: logits and labels do not fit.
    """
    labels = targets if isinstance(targets, Tensor) else of_right_options(targets)
    return _per_token("seq2seq", output, labels)


def token_classification(output: Any, targets: Tensor) -> Tensor:
    """The mean cross-entropy of one task's tokens, each of which has a class.

    Args:
        output: logits ``[examples, length, classes]``, or what holds them as ``logits``.
        targets: int64 ``[examples, length]``, and -100 where a token does not count.

    Returns:
        A scalar; nan where no token counts.

    Raises:
        ValueError: logits and labels do not fit.
    """
    return _per_token("token_classification", output, targets)


def regression(output: Any, targets: Targets) -> Tensor:
    """The mean squared error of one task.

    Args:
        output: ``[examples]`` or ``[examples, values]``, or what holds it as ``logits``.
        targets: floating, of the same shape but for dimensions of 1. Or, where the tasks of a
            meta-batch have different numbers of examples, a dict of such ``values`` and
            ``counts``, bool ``[examples]``, False where an example is there only to fill up: the
            mean is over the others, as if the filled-up ones were not there.

    Returns:
        A scalar; nan where no example counts.

    Raises:
        ValueError: the sizes differ, which broadcasting would hide.
    """
    values, counts = counted_rows(targets)
    found = logits_of(output)
    if found is None or len(found) != len(values) or found.numel() != values.numel():
        got = type(output).__name__ if found is None else f"outputs of shape {list(found.shape)}"
        wanted = values[0].numel() if len(values) else 1
        raise ValueError(
            f"fastmaml.losses.regression was given {got} and targets of shape "
            f"{list(values.shape)}: the model has to return {_number(wanted)} an example."
        )
    return _mean((found.reshape(values.shape) - values).square(), counts)


@final
@dataclass(frozen=True)
class counted:  # noqa: N801 - it is called as the losses beside it
    """A loss of one task in which examples that are there only to fill up do not count.

    Made of a loss that gives a number for each example, such as PyTorch's functions with
    ``reduction="none"``; for several 0/1 targets an example:

        >>> loss = fm.losses.counted(F.binary_cross_entropy_with_logits)

    The number of an example that does not count may be anything finite: neither it nor its
    derivatives have a part in the result. Not for a model in which examples see one another, such
    as one with BatchNorm: `MAML` refuses that.

    Args:
        loss: called as ``loss(output, values, reduction="none")``; returns ``[examples, ...]``.
    """

    loss: Callable[..., Tensor]

    def __call__(self, output: Any, targets: Any) -> Tensor:
        """The mean over the examples that count, and over what each of them has.

        Args:
            output: as the loss takes it.
            targets: as the loss takes them; or a dict of such ``values`` and ``counts``, bool
                ``[examples]``.

        Returns:
            A scalar; nan where no example counts.

        Raises:
            ValueError: the loss does not give a number for each example.
        """
        values, counts = counted_rows(targets)
        each = self.loss(output, values, reduction="none")
        if each.ndim == 0 or len(each) != len(values):
            name = getattr(self.loss, "__name__", type(self.loss).__name__)
            raise ValueError(
                f"fastmaml.losses.counted({name}) got a result of shape {list(each.shape)} for "
                f"{len(values)} examples: with reduction='none' it has to give each its own."
            )
        return _mean(each, counts)


def counted_rows(targets: Any) -> tuple[Any, Tensor | None]:
    """Targets without what says which examples count, and that: bool, or None for all.

    Args:
        targets: of one task or of several; a dict of ``values`` and ``counts``, or any others.
    """
    if isinstance(targets, Mapping) and targets.keys() == {"values", "counts"}:
        return targets["values"], targets["counts"]
    return targets, None


def _mean(each: Tensor, counts: Tensor | None) -> Tensor:
    """Of ``[examples, ...]``, over all or over the examples that count."""
    if counts is None:
        return each.mean()
    rows = each.reshape(len(each), -1).mean(1)
    return torch.where(counts, rows, 0.0).sum() / counts.sum()


def _number(values: int) -> str:
    return "one value" if values == 1 else f"{values} values"


def own(output: Any, targets: Any) -> Tensor:
    """The loss that the model itself computes, as those of transformers do where given ``labels``.

    Args:
        output: what holds it as ``loss``.
        targets: are not looked at: ``Batch(inputs)`` without any will do.

    Returns:
        A scalar.

    Raises:
        ValueError: the output has no loss.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"the model returned a {type(output).__name__} without a loss: put `labels` into the "
            "inputs, or give MAML another loss."
        )
    return loss


def of_right_options(targets: Mapping[str, Tensor]) -> Tensor:
    """The tokens of right options alone, where every option of a question has a row.

    Args:
        targets: ``labels``, int64 ``[questions·options, length]``, and ``right``, int64
            ``[questions]``, the number of the right option.

    Returns:
        The labels with -100 in the rows of wrong options.
    """
    labels, right = targets["labels"], targets["right"]
    options = labels.shape[0] // right.shape[0]
    chosen = torch.arange(options, device=right.device) == right.unsqueeze(-1)
    return torch.where(chosen.reshape(-1, 1), labels, -100)


def _per_token(name: str, output: Any, labels: Tensor) -> Tensor:
    logits = logits_of(output)
    if logits is None or logits.ndim != 3 or logits.shape[:2] != labels.shape:
        got = type(output).__name__ if logits is None else f"logits of shape {list(logits.shape)}"
        raise ValueError(
            f"fastmaml.losses.{name} was given {got} and labels of shape {list(labels.shape)}: "
            "the model has to return logits [examples, length, classes], for labels [examples, "
            "length]."
        )
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def masked(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits with those of classes that a task does not have at the lowest number there is.

    Args:
        logits: ``[..., examples, classes]``.
        classes: ``[..., 1]``, how many are the task's; one logit at least stays.

    Returns:
        The same shape and dtype.
    """
    there = torch.arange(logits.shape[-1], device=logits.device) < classes.unsqueeze(-1)
    return torch.where(there, logits, torch.finfo(logits.dtype).min)


def logits_of(output: Any) -> Tensor | None:
    """The logits of a model's output, whatever holds them; None if nothing does.

    Args:
        output: a tensor, or a mapping or an object with ``logits``.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else None
