"""Losses of one task: classes whose number may differ from task to task, tokens, values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Targets",
    "causal",
    "classification",
    "logits_of",
    "masked",
    "of_right_options",
    "own",
    "regression",
    "seq2seq",
    "token_classification",
]

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
            (logits[:, 0] - values)².

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


def regression(output: Any, targets: Tensor) -> Tensor:
    """The mean squared error of one task, of a model with one output an example.

    Args:
        output: ``[examples]`` or ``[examples, 1]``, or what holds it as ``logits``.
        targets: floating ``[examples]`` or ``[examples, 1]``.

    Returns:
        A scalar.

    Raises:
        ValueError: the sizes differ, which broadcasting would hide.
    """
    found = logits_of(output)
    if found is None or len(found) != len(targets) or found.numel() != targets.numel():
        got = type(output).__name__ if found is None else f"outputs of shape {list(found.shape)}"
        raise ValueError(
            f"fastmaml.losses.regression was given {got} and targets of shape "
            f"{list(targets.shape)}: the model has to return one value an example."
        )
    return (found.reshape(targets.shape) - targets).square().mean()


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
