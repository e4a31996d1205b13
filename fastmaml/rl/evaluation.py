"""How much return each inner step brings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmaml.rl.environments.base import Environment
from fastmaml.rl.learner import MetaPolicy
from fastmaml.rl.sampler import sample
from fastmaml.rl.trajectories import Trajectories


def adaptation(
    learner: MetaPolicy,
    environment: Environment,
    tasks: Any,
    n: int,
    steps: int,
    horizon: int | None = None,
) -> list[Trajectories]:
    """Trajectories after 0, 1, ..., steps inner steps, each step on the trajectories before it.

    Args:
        learner: is not changed.
        environment: is reset.
        tasks: from ``environment.sample_tasks``.
        n: trajectories of each task, at every step.
        steps: how many inner steps.
        horizon: steps of a trajectory; None for the environment's.
    """
    found = [sample(environment, tasks, learner.act, n, horizon)]
    adapted = None
    for _ in range(steps):
        adapted = learner.adapted(found[-1], adapted)
        found.append(sample(environment, tasks, adapted, n, horizon))
    return found


def returns_by_step(
    learner: MetaPolicy,
    environment: Environment,
    tasks: Any,
    n: int,
    steps: int,
    horizon: int | None = None,
) -> Tensor:
    """``[tasks, steps + 1]``: the mean return of each task's trajectories, as in `adaptation`."""
    found = adaptation(learner, environment, tasks, n, steps, horizon)
    return torch.stack([t.returns.double().mean(1) for t in found], 1)
