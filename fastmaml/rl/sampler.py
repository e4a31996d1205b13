"""Trajectories of all tasks at once, from an environment and policies that act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastmaml.rl.environments.base import Environment
from fastmaml.rl.policies import parts_of
from fastmaml.rl.trajectories import Trajectories

Act = Callable[[Tensor], Any]
"""From observations ``[tasks, n, ...]`` to a distribution of actions of batch ``[tasks, n]``."""


def sample(
    environment: Environment, tasks: Any, act: Act, n: int, horizon: int | None = None
) -> Trajectories:
    """Let policies act: ``n`` trajectories of every task.

    All of them step together; actions are drawn from torch's global generator
    (`torch.manual_seed`), and what the environment draws from its own.

    Args:
        environment: is reset.
        tasks: as from `Environment.sample_tasks`.
        act: `MetaPolicy.act`, an `Adapted`, or any function like these.
        n: how many trajectories of each.
        horizon: how many steps at the most; None for the environment's.

    Raises:
        ValueError: a number that is not positive; distributions of another batch than
            ``[tasks, n]``; what is seen or got is not finite (its place is named).
    """
    horizon = environment.horizon if horizon is None else horizon
    for name, value in (("n", n), ("horizon", horizon)):
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1.")
    seen = environment.reset(tasks, n)
    alive = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
    truncated, last = torch.zeros_like(alive), torch.zeros_like(seen)
    found: dict[str, list[Any]] = {}
    with torch.no_grad():
        for number in range(horizon):
            distribution = _of_all(act(seen), alive.shape)
            actions, before = distribution.sample(), seen.clone()  # it may write to what it gave
            step = environment.step(actions)
            now: tuple[tuple[str, Any], ...] = (
                ("observations", before),
                ("actions", actions),
                ("rewards", torch.where(alive, step.rewards, 0)),
                ("mask", alive),
                ("log_probs", distribution.log_prob(actions)),
                ("policy", parts_of(distribution)),
            )
            for key, kept in now:
                found.setdefault(key, []).append(kept)
            over = step.terminated | step.truncated
            cut = alive & over & ~step.terminated
            if number == horizon - 1:  # so many steps are the task, whoever counts them
                cut = torch.zeros_like(cut)
            last = torch.where(_wide(cut, before), step.observations, last)
            truncated, alive = truncated | cut, alive & ~over
            # Those that are over may give anything; the policy sees what they saw last.
            seen = torch.where(_wide(alive, before), step.observations, before)
            if not bool(alive.any()):
                break
    first, *others = found.pop("policy")
    return Trajectories(
        **{name: torch.stack(values, 1) for name, values in found.items()},
        truncated=truncated,
        last=last,
        policy=first.stacked(others, 1),
    )


def _wide(x: Tensor, like: Tensor) -> Tensor:
    """``[tasks, n]`` with as many dimensions as observations have."""
    return x.view(*x.shape, *[1] * (like.ndim - 2))


def _of_all(distribution: Any, shape: torch.Size) -> Distribution:
    """A distribution of every trajectory's action.

    Raises:
        TypeError: it is none.
        ValueError: it is of another batch.
    """
    parts_of(distribution)
    found: Distribution = distribution
    if found.batch_shape != shape:
        raise ValueError(
            f"the policy gives distributions of batch {list(found.batch_shape)} for "
            f"{list(shape)} [tasks, n] observations: one action for each, of several numbers by "
            "Independent(..., 1)."
        )
    return found
