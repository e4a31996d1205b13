"""`autocast`: the precision that a configuration computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from fastmaml.training.config import LoopConfig


def autocast(config: LoopConfig, device: torch.device) -> AbstractContextManager[object]:
    """`torch.autocast` as the configuration has it; training and evaluation run in it.

    Args:
        config: of the outer loop.
        device: of the model.
    """
    if config.autocast == "none":
        return nullcontext()  # another one around it stays in force
    return torch.autocast(device.type, torch.bfloat16)
