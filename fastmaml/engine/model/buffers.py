"""What happens to a model's buffers, which are BatchNorm's running statistics above all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fastmaml.gradients.base import smooth
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
            own.copy_(each.mean(0) if smooth(own) else each[0])


def forget_running_statistics(model: nn.Module) -> None:
    """Make normalisation layers use the batch at hand in training and evaluation alike.

    As they do while a model is meta-trained with ``batch_norm="batch"``, and in what
    `MAML.adapt_to` returns, whose ``state_dict()`` loads into a model after this. One with running
    statistics can be loaded as well: they are left out.

    Args:
        model: changed in place: its layers lose their running statistics.
    """
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.register_load_state_dict_pre_hook(_left_out)


def _left_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Nothing of a layer's running statistics is loaded."""
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        state.pop(prefix + name, None)
