"""How much better an action did than was to be expected: baselines and advantages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fastmaml.rl.trajectories import Trajectories


@dataclass(frozen=True)
class Baseline(ABC):
    """What a trajectory is still worth, by what is seen and when."""

    @abstractmethod
    def values(self, trajectories: Trajectories, discount: float) -> tuple[Tensor, Tensor]:
        """``[tasks, steps, n]`` values, and ``[tasks, n]`` those of `Trajectories.last`.

        The latter are read where a trajectory was truncated.
        """


@final
@dataclass(frozen=True)
class ZeroBaseline(Baseline):
    """None: advantages are (discounted) returns-to-go."""

    def values(self, trajectories: Trajectories, discount: float) -> tuple[Tensor, Tensor]:
        """Zeros."""
        rewards = trajectories.rewards
        return torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])


@final
@dataclass(frozen=True)
class LinearBaseline(Baseline):
    """Each task's own linear fit of returns-to-go on (o, o², t, t², t³, 1), in float64.

    The feature baseline of Duan et al. (2016), which MAML and ProMP use; t is in hundreds of steps.
    All tasks' normal equations are solved at once.

    Args:
        ridge: added to their diagonal.
        clip: observations are clipped to ± this.
    """

    ridge: float = 1e-5
    clip: float = 10.0

    def values(self, trajectories: Trajectories, discount: float) -> tuple[Tensor, Tensor]:
        """The fitted values, and those of what follows a truncated trajectory."""
        mask, rewards = trajectories.mask, trajectories.rewards
        returns = discounted(rewards.double() * mask, discount)
        times = torch.arange(rewards.shape[1], device=rewards.device).view(1, -1, 1)
        features = self._features(trajectories.observations, times.expand_as(rewards))
        rows = (features * mask.unsqueeze(-1)).flatten(1, 2)
        normal = rows.mT @ rows
        normal += self.ridge * torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
        weights = torch.linalg.solve(normal, rows.mT @ (returns * mask).flatten(1, 2).unsqueeze(-1))
        found = (features @ weights.unsqueeze(1)).squeeze(-1).to(rewards.dtype)
        if trajectories.last is None:
            return found, torch.zeros_like(rewards[:, 0])
        after = self._features(trajectories.last.unsqueeze(1), trajectories.lengths.unsqueeze(1))
        return found, (after @ weights.unsqueeze(1)).squeeze(-1).squeeze(1).to(rewards.dtype)

    def _features(self, observations: Tensor, times: Tensor) -> Tensor:
        seen = observations.double().reshape(*times.shape, -1).clamp(-self.clip, self.clip)
        t = times.double().unsqueeze(-1) / 100
        return torch.cat([seen, seen**2, t, t**2, t**3, torch.ones_like(t)], -1)


@final
@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimates (Schulman et al., 2016): ``[tasks, steps, n]``, no graphs.

    A trajectory that was truncated goes on with the baseline's value; one that ended is worth
    nothing any more.

    Args:
        baseline: what is to be expected.
        discount: of rewards, γ, from 0 to 1.
        trace: λ, from 0 (one step) to 1 (returns less the baseline).
        normalize: subtract each task's mean and divide by its standard deviation, both over the
            steps that count. Not where exact units matter: the gradient is then that of the
            return, scaled.
        sparse: that no task has any trajectory better than another (no reward was found) may
            happen; else it is an error, as nothing can be learned. Single such tasks count as zero.

    Raises:
        ValueError: a discount or trace that is no number from 0 to 1.
    """

    baseline: Baseline = LinearBaseline()
    discount: float = 0.99
    trace: float = 1.0
    normalize: bool = True
    sparse: bool = False

    def __post_init__(self) -> None:
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a number from 0 to 1.")

    def __call__(self, trajectories: Trajectories) -> Tensor:
        """The advantages; zero where the mask is.

        Raises:
            ValueError: the advantages of every task are all the same, and `sparse` is not set.
        """
        with torch.no_grad():
            mask = trajectories.mask
            values, after = self.baseline.values(trajectories, self.discount)
            values = values * mask
            following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
            if trajectories.truncated is not None:
                ends = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
                ends &= trajectories.truncated.unsqueeze(1)
                following = torch.where(ends, after.unsqueeze(1), following)
            errors = (trajectories.rewards + self.discount * following - values) * mask
            found = discounted(errors, self.discount * self.trace)
            return self._normalized(found, trajectories) if self.normalize else found

    def _normalized(self, advantages: Tensor, trajectories: Trajectories) -> Tensor:
        mask = trajectories.mask
        count = mask.sum((1, 2), keepdim=True)
        mean = advantages.sum((1, 2), keepdim=True) / count
        centred = (advantages - mean) * mask
        deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
        alike = _alike(trajectories) | (deviation == 0)
        if not self.sparse and bool(alike.all()):
            raise ValueError(
                "in every task the advantages are all alike, as its rewards are: nothing can be "
                "learned from them. Where rewards are so sparse that this happens, say so: "
                "GAE(sparse=True)."
            )
        return torch.where(alike, 0, centred / torch.where(alike, 1, deviation))


def _alike(trajectories: Trajectories) -> Tensor:
    """``[tasks, 1, 1]``: tasks of which every trajectory has as many steps and the same rewards.

    What a baseline leaves of them is the error of its fit.
    """
    rewards, mask, lengths = trajectories.rewards, trajectories.mask, trajectories.lengths
    least = torch.where(mask, rewards, torch.inf).amin((1, 2), keepdim=True)
    most = torch.where(mask, rewards, -torch.inf).amax((1, 2), keepdim=True)
    as_long = lengths.amin(1) == lengths.amax(1)
    return (least == most) & as_long.view(-1, 1, 1)


def discounted(x: Tensor, discount: float) -> Tensor:
    """``y[t] = x[t] + discount · y[t + 1]`` along dimension 1.

    Args:
        x: ``[tasks, steps, n]``.
        discount: from 0 to 1.
    """
    found, total = torch.empty_like(x), torch.zeros_like(x[:, 0])
    for step in reversed(range(x.shape[1])):
        total = x[:, step] + discount * total
        found[:, step] = total
    return found
