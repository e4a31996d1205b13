"""What changes in the course of training: MAML++'s annealing, and the outer learning rate.

Each is a pure function of the iteration, so nothing of it needs saving in a checkpoint.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmaml.training.config import LoopConfig

FLOOR = 0.03
"""The share of 1/steps below which the weight of a non-final step does not fall."""


def multi_step_weights(steps: int, iteration: int, until: int) -> Tensor | None:
    """MAML++'s multi-step loss (Antoniou et al., 2019): the query loss counts after every step.

    All steps weigh 1/steps at first. The weights of the non-final steps decay linearly, by
    1/(steps·until) an iteration, down to 0.03/steps; the final step takes the rest.

    Args:
        steps: inner steps, at least 1.
        iteration: iterations done so far.
        until: the iteration from which the final step alone counts.

    Returns:
        ``[steps]``, non-negative with sum 1, or None once `until` is reached.
    """
    if iteration >= until:
        return None
    weight = max(1 - iteration / until, FLOOR) / steps
    return torch.tensor([weight] * (steps - 1) + [1 - weight * (steps - 1)])


def cosine(iteration: int, iterations: int) -> float:
    """The factor of a cosine schedule (Loshchilov and Hutter, 2017): from 1 down to 0."""
    return (1 + math.cos(math.pi * min(iteration / iterations, 1.0))) / 2


def factor(config: LoopConfig, iteration: int) -> float:
    """What the outer learning rate is multiplied with.

    In the warm-up (iteration + 1)/warmup; after it the schedule, over the iterations that remain.

    Args:
        config: of the outer loop.
        iteration: iterations done so far.
    """
    if iteration < config.warmup:
        return (iteration + 1) / config.warmup
    done, total = iteration - config.warmup, config.iterations - config.warmup
    if config.schedule == "cosine":
        return cosine(done, total)
    if config.schedule == "linear":
        return 1 - min(done / total, 1.0)
    if config.schedule == "step" and config.step_every is not None:
        return float(config.step_factor ** (done // config.step_every))
    return 1.0
