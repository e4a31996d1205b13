"""`AsyncVectorEnv`: several environments of one task, as learn2learn's scripts step them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, final

import gymnasium
import numpy as np


@final
class AsyncVectorEnv(gymnasium.Env[Any, Any]):
    """Environments of one task that step together and begin anew when they are over.

    What learn2learn's class of that name gives, in the old way of four values, which cherry's
    wrappers and public scripts unpack. Environments may be gymnasium's or the old gym's. They
    run in this process, one after the other: nothing that hangs or dies apart, and no gain where
    one step takes milliseconds. What steps all tasks at once is `fastmaml.rl`.

    Spaces are those of the first environment; they are the old gym's where that was imported, by
    cherry for example, which knows no others.

    Args:
        env_fns: each makes an environment, whose ``unwrapped`` has ``set_task`` and
            ``sample_tasks``.
        env: draws the tasks; None for another one of the first function.

    Raises:
        ValueError: no functions.
    """

    def __init__(self, env_fns: Sequence[Callable[[], Any]], env: Any = None) -> None:
        if not env_fns:
            raise ValueError("env_fns is empty: give a function that makes an environment.")
        self.envs = [make() for make in env_fns]
        self.num_envs = len(self.envs)
        self._env = env_fns[0]() if env is None else env
        first = self.envs[0]
        self.observation_space = _space(first.observation_space)
        self.action_space = _space(first.action_space)
        self.reset()

    def sample_tasks(self, num_tasks: int) -> Any:
        """Tasks, as the environment draws them."""
        return _of_tasks(self._env, "sample_tasks")(num_tasks)

    def set_task(self, task: Any) -> bool:
        """Set the task of all; `reset` begins it."""
        for env in self.envs:
            _of_tasks(env, "set_task")(task)
        return True

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed environment i with ``seed + i``, and what draws the tasks with the next number.

        Environments that draw from numpy's global generator are seeded by ``np.random.seed``.
        """
        seeds = [None if seed is None else seed + i for i in range(self.num_envs + 1)]
        for env, own in zip((*self.envs, self._env), seeds, strict=True):
            if own is not None and hasattr(env.unwrapped, "seed"):  # the old API
                env.seed(own)
            elif own is not None:
                env.reset(seed=own)
        return seeds[:-1]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """The first observations ``[environments, ...]``."""
        if seed is not None:
            self.seed(seed)
        return np.stack([_begin(env) for env in self.envs])

    def step(self, actions: Any) -> Any:
        """Observations, rewards, dones ``[environments, ...]``, and a dict of each.

        The observation of one that is over is the first of its next trajectory; its last one is
        its dict's "final_obs", and "TimeLimit.truncated" says whether only its time was over.

        Args:
            actions: one for each environment.

        Raises:
            ValueError: another number of actions.
        """
        actions = list(actions)
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} environments.")
        found = [self._one(i, action) for i, action in enumerate(actions)]
        seen, rewards, dones, infos = zip(*found, strict=True)
        return np.stack(seen), np.stack(rewards), np.stack(dones), infos

    def render(self, *args: Any, **kwargs: Any) -> Any:
        """What the environment that draws the tasks shows."""
        return self._env.render(*args, **kwargs)

    def close(self) -> None:
        """Close all of them."""
        for env in (*self.envs, self._env):
            env.close()

    def _one(self, i: int, action: Any) -> tuple[Any, float, bool, dict[str, Any]]:
        seen, reward, *over, info = self.envs[i].step(action)
        done = any(bool(x) for x in over)
        if done:
            last = {"final_obs": seen}
            if len(over) == 2:  # the old API has one, and says it itself
                last["TimeLimit.truncated"] = not over[0]
            info = info | last
            seen = _begin(self.envs[i])
        return seen, float(reward), done, info


def _begin(env: Any) -> Any:
    """A new trajectory's first observation, by either API."""
    result = env.reset()
    is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    return result[0] if is_pair else result


def _of_tasks(env: Any, name: str) -> Any:
    found = getattr(env.unwrapped, name, None)
    if found is None:
        raise AttributeError(
            f"{type(env.unwrapped).__name__} has no {name}(): derive it from "
            "fastmaml.compat.learn2learn.gym.MetaEnv, or give it one."
        )
    return found


def _space(space: Any) -> Any:
    """The space, as one of the old gym's where that is in use: cherry asks for their types."""
    spaces = getattr(sys.modules.get("gym"), "spaces", None)
    if spaces is None or not isinstance(space, gymnasium.Space) or spaces is gymnasium.spaces:
        return space
    if isinstance(space, gymnasium.spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, gymnasium.spaces.Box):
        return spaces.Box(space.low, space.high, dtype=space.dtype)
    return space
