"""`for_classes`: an adapted classifier as one for its own task's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def for_classes(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """The model with one logit a class, whose configuration names them.

    A meta-learner has as many logits as its largest task has classes; those that a task lacks mean
    nothing once it is adapted.

    Args:
        model: a classifier whose last linear layer gives the logits; changed in place.
        names: of the first classes, in order.

    Returns:
        The model.

    Raises:
        ValueError: its last linear layer does not give the logits, or there are fewer.
    """
    holder: Any = model
    layer = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    logits = holder.config.num_labels
    if layer.out_features != logits or logits < len(names):
        raise ValueError(
            f"the model has {logits} logits, its last linear layer gives {layer.out_features}, and "
            f"there are {len(names)} classes: the layer has to give the logits, and as many."
        )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            kept = parameter[: len(names)].clone()
            setattr(layer, name, nn.Parameter(kept, parameter.requires_grad))
    layer.out_features = len(names)
    if hasattr(holder, "num_labels"):  # of a model of transformers, which looks at it
        holder.num_labels = len(names)
    holder.config.num_labels = len(names)
    holder.config.id2label = dict(enumerate(names))
    holder.config.label2id = {name: i for i, name in enumerate(names)}
    return model
