"""The examples of a query set that count, where some are there only to fill up."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmaml.losses import IGNORED, counted_rows, logits_of


def without_padding(output: Any, targets: Any) -> tuple[Any, Any]:
    """What a model gave for the examples that count, and the targets of these.

    Args:
        output: of one task, ``[examples, ...]``, or what holds it as ``logits``.
        targets: of that task. Those of `losses.counted` become their values; of labels
            ``[examples]`` those with -100 are left out. All others stay as they are, also those
            of tokens, whose -100 each metric leaves out by itself.

    Returns:
        Outputs, of which only the logits stay where some are left out, and targets.
    """
    values, counts = counted_rows(targets)
    if counts is None and isinstance(targets, Tensor) and _are_labels(targets):
        counts = targets != IGNORED
    logits = logits_of(output)
    if counts is None or not isinstance(values, Tensor):
        return output, values
    if logits is None or bool(counts.all()):
        return output, values
    return logits[counts], values[counts]


def _are_labels(targets: Tensor) -> bool:
    return targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()
