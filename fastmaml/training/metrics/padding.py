"""The examples of a query set that count, where some are there only to fill up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastmaml.losses import IGNORED, counted_rows, logits_of


def without_padding(output: Any, targets: Any) -> tuple[Any, Any]:
    """What a model gave for the examples that count, and the targets of these.

    Args:
        output: of one task, ``[examples, ...]``, or what holds it as ``logits``.
        targets: of that task. Those of `losses.counted` become their values; of labels
            ``[examples]`` those with -100 are left out, also where they are the ``labels`` of
            `losses.classification`. All others stay as they are, also those of tokens, whose -100
            each metric leaves out by itself.

    Returns:
        Outputs, of which only the logits stay where some are left out, and targets.
    """
    values, counts = counted_rows(targets)
    labels = _labels(targets)
    if counts is None and labels is not None:
        counts = labels != IGNORED
    logits = logits_of(output)
    if counts is None or logits is None or bool(counts.all()):
        return output, values
    if isinstance(values, Mapping):
        kept = {k: x[counts] for k, x in values.items() if k in ("labels", "values")}
        return logits[counts], {**values, **kept}
    return (logits[counts], values[counts]) if isinstance(values, Tensor) else (output, values)


def _labels(targets: Any) -> Tensor | None:
    """Classes ``[examples]``; None where targets are anything else."""
    found = targets
    if isinstance(targets, Mapping):
        known = {"labels", "classes"} <= targets.keys() and int(targets["classes"]) > 1
        found = targets["labels"] if known else None
    if not isinstance(found, Tensor) or found.ndim != 1:
        return None
    return None if found.is_floating_point() or found.is_complex() else found
