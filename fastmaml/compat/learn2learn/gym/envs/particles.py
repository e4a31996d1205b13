"""A point that is to find a goal in the plane."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from fastmaml.compat.learn2learn.gym.envs.meta_env import MetaEnv


class Particles2DEnv(MetaEnv):
    """Steps of at most 0.1 from the origin; the reward is minus the distance from the goal.

    Goals are uniform in a square of side 1 around the origin; 0.01 from one it is over.
    """

    def __init__(self, task: Any = None) -> None:
        super().__init__(task)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)
        self._state = np.zeros(2, np.float32)

    def sample_tasks(self, num_tasks: int) -> list[Any]:
        """Goals, drawn from the environment's own generator."""
        return [{"goal": x} for x in self.np_random.uniform(-0.5, 0.5, (num_tasks, 2))]

    def set_task(self, task: Any) -> None:
        """Go to ``task["goal"]`` from now on."""
        super().set_task(task)
        self._goal = task["goal"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Back to the origin."""
        super().reset(seed=seed)
        self._state = np.zeros(2, np.float32)
        return self._state, {}

    def step(self, action: Any) -> Any:
        """Move.

        Raises:
            ValueError: an action that is no two finite numbers.
        """
        given = np.asarray(action, np.float32)
        if given.shape != (2,) or not np.isfinite(given).all():
            raise ValueError(f"the action is {action!r}: give two finite numbers.")
        self._state = self._state + np.clip(given, -0.1, 0.1)
        apart = self._state - self._goal
        reward = -float(np.linalg.norm(apart))
        return self._state, reward, bool((np.abs(apart) < 0.01).all()), False, self.get_task()
