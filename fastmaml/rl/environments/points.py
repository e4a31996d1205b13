"""A point in the plane that is to go somewhere: dense rewards and sparse ones."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fastmaml.rl.environments.base import Environment, Step


@final
class Navigation(Environment):
    """2D navigation of the MAML paper (Finn et al., 2017, section 5.3).

    A task is a goal in a square, which is not seen; the point begins at the origin and moves by at
    most a tenth in each coordinate. The reward is the negative distance to the goal, and a
    trajectory ends within a hundredth of it (in both coordinates).

    Args:
        low, high: bounds of the goals' coordinates.
        horizon: steps of a trajectory.
        seed: of what it draws: goals.
    """

    planar: ClassVar[bool] = True

    def __init__(
        self, low: float = -0.5, high: float = 0.5, horizon: int = 100, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.low, self.high, self.horizon = low, high, horizon
        self.observation_size = self.action_size = 2
        self._goals = self._at = torch.zeros(0, 1, 2)

    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n, 2]`` goals."""
        drawn = torch.rand(n, 2, generator=generator or self.generator)
        return self.low + (self.high - self.low) * drawn

    def reset(self, tasks: Any, n: int) -> Tensor:
        """All at the origin."""
        self._goals = tasks.unsqueeze(1)
        self._at = tasks.new_zeros(len(tasks), n, 2)
        return self._at

    def step(self, actions: Tensor) -> Step:
        """Move, and see where that is."""
        self._at = self._at + 0.1 * actions.clamp(-1, 1)
        apart = self._at - self._goals
        there = (apart.abs() < 0.01).all(-1)
        return Step(self._at, -apart.norm(dim=-1), there, torch.zeros_like(there))


@final
class Corners(Environment):
    """A point that is to find out which of four corners is rewarded (ProMP's sparse point).

    A task is a corner (±2, ±2). The point begins near the origin and moves by at most 0.2 in each
    coordinate; the reward is 2 less the distance to the corner where that is positive, else
    nothing: at the origin, no direction is better than another. Adaptation pays only for a policy
    that looks around before it adapts.

    Args:
        horizon: steps of a trajectory.
        seed: of what it draws: corners and beginnings.
    """

    sparse: ClassVar[bool] = True
    planar: ClassVar[bool] = True

    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(seed)
        self.horizon, self.observation_size, self.action_size = horizon, 2, 2
        self._corners = self._at = torch.zeros(0, 1, 2)

    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n, 2]`` corners."""
        drawn = torch.randint(2, (n, 2), generator=generator or self.generator)
        return 4.0 * drawn - 2

    def reset(self, tasks: Any, n: int) -> Tensor:
        """All near the origin."""
        self._corners = tasks.unsqueeze(1)
        drawn = torch.rand(len(tasks), n, 2, generator=self.generator)
        self._at = (0.4 * drawn - 0.2).to(tasks)
        return self._at

    def step(self, actions: Tensor) -> Step:
        """Move, and see where that is."""
        self._at = self._at + actions.clamp(-0.2, 0.2)
        rewards = (2 - (self._at - self._corners).norm(dim=-1)).clamp(min=0)
        never = torch.zeros_like(rewards, dtype=torch.bool)
        return Step(self._at, rewards, never, never)
