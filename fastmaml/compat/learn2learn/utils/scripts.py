"""What training scripts report: accuracies and configurations."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from torch import Tensor


def accuracy(preds: Tensor, targets: Tensor) -> Tensor:
    """The share of rows whose largest entry is at the target, a float32 scalar tensor.

    Args:
        preds: ``[examples, classes]``.
        targets: ``[examples]``, of any dtype.
    """
    return (preds.argmax(dim=1) == targets.long()).sum().float() / preds.size(0)


def flatten_config(args: Any, prefix: str | None = None) -> dict[str | None, Any]:
    """A nested configuration as one dict with dotted keys.

    Args:
        args: an `argparse.Namespace`, a dict or a dataclass, whose values may be such again; any
            other value is the result's only entry, under `prefix`.
        prefix: what the keys begin with.
    """
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    elif dataclasses.is_dataclass(args) and not isinstance(args, type):
        args = {f.name: getattr(args, f.name) for f in dataclasses.fields(args)}
    if not isinstance(args, dict):
        return {prefix: args}
    flat: dict[str | None, Any] = {}
    for key, value in args.items():
        flat |= flatten_config(value, str(key) if prefix is None else f"{prefix}.{key}")
    return flat
