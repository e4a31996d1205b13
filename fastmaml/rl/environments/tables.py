"""Small problems whose every quantity can be computed: bandits and tabular decision processes."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fastmaml.rl.environments.base import Environment, Step


@final
class Bandits(Environment):
    """Arms with normal rewards around a mean of their own; a task is ``[arms]`` means.

    Args:
        arms: how many.
        pulls: steps of a trajectory.
        noise: standard deviation of rewards around the means.
        seed: of what it draws: means (standard normal) and noise.
    """

    discrete: ClassVar[bool] = True

    def __init__(self, arms: int = 5, pulls: int = 1, noise: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        self.action_size, self.horizon, self.noise = arms, pulls, noise
        self.observation_size = 1
        self._means = self._seen = torch.zeros(0, 1, arms)

    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n, arms]`` means."""
        return torch.randn(n, self.action_size, generator=generator or self.generator)

    def reset(self, tasks: Any, n: int) -> Tensor:
        """There is nothing to see: a one."""
        self._means = tasks.unsqueeze(1).expand(-1, n, -1)
        self._seen = tasks.new_ones(len(tasks), n, 1)
        return self._seen

    def step(self, actions: Tensor) -> Step:
        """Pull an arm."""
        means = self._means.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        noise = torch.randn(means.shape, generator=self.generator).to(means)
        never = torch.zeros_like(means, dtype=torch.bool)
        return Step(self._seen, means + self.noise * noise, never, never)


@final
class TabularMDP(Environment):
    """Random decision processes; a task holds transitions and rewards.

    What is seen is the state, as a vector of zeros and a one. Trajectories begin in state 0.

    Args:
        states, actions: how many there are.
        horizon: steps of a trajectory.
        sharpness: power of the exponentially distributed weights of next states; at 1 every
            distribution is as likely, and large ones are nearly certain.
        seed: of what it draws: tasks and transitions.
    """

    discrete: ClassVar[bool] = True

    def __init__(
        self,
        states: int = 5,
        actions: int = 3,
        horizon: int = 10,
        sharpness: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.observation_size, self.action_size, self.horizon = states, actions, horizon
        self.sharpness = sharpness
        self._tasks = torch.zeros(0, states, actions, states + 1)
        self._state = torch.zeros(0, 0, dtype=torch.int64)

    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n, states, actions, states + 1]``: chances of the next state, then the reward."""
        drawn, states = generator or self.generator, self.observation_size
        shape = (n, states, self.action_size)
        uniform = torch.rand(*shape, states, generator=drawn, dtype=torch.float64)
        weights = (-uniform.clamp(min=1e-12).log()) ** self.sharpness
        rewards = torch.randn(*shape, 1, generator=drawn, dtype=torch.float64)
        whole = torch.cat([weights / weights.sum(-1, keepdim=True), rewards], -1)
        return whole.to(torch.get_default_dtype())

    def reset(self, tasks: Any, n: int) -> Tensor:
        """All in state 0."""
        self._tasks = tasks
        self._state = torch.zeros(len(tasks), n, dtype=torch.int64, device=tasks.device)
        return self._seen()

    def step(self, actions: Tensor) -> Step:
        """Take the reward of (state, action), and go on by chance."""
        task = torch.arange(len(self._tasks), device=actions.device).unsqueeze(1)
        row = self._tasks[task, self._state, actions]
        chance = torch.rand(actions.shape, generator=self.generator).to(row).unsqueeze(-1)
        after = (row[..., :-1].cumsum(-1) < chance).sum(-1)
        self._state = after.clamp(max=self.observation_size - 1)
        never = torch.zeros(actions.shape, dtype=torch.bool, device=actions.device)
        return Step(self._seen(), row[..., -1], never, never)

    def _seen(self) -> Tensor:
        size = self.observation_size
        return torch.nn.functional.one_hot(self._state, size).to(self._tasks)
