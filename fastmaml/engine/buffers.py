"""What happens to a model's buffers, which are BatchNorm's running statistics above all."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fastmaml.rules.base import Tensors


def keep_buffers(model: nn.Module, left: Tensors) -> None:
    """Write back what a query pass left, ``[tasks, *shape]``: the mean over tasks.

    Of a count, which is the same for all tasks, one task's.
    """
    with torch.no_grad():
        for name, own in model.named_buffers():
            each = left.get(name)
            if each is None or torch.equal(each, own.expand_as(each)):
                continue  # a constant is not to be rounded by its own mean
            own.copy_(each.mean(0) if own.is_floating_point() else each[0])


def forget_running_statistics(model: nn.Module) -> None:
    """Make normalisation layers use the batch at hand in training and evaluation alike."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
