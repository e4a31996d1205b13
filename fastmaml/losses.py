"""Losses of one task for classifiers whose tasks may differ in their number of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Targets", "classification", "logits_of", "masked"]

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
