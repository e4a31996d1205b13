"""Anyone's own Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.rl.environments.base import Environment, Step

_SEEDS = 2**31


@final
class Gymnasium(Environment):
    """Environments of the `gymnasium` API, one for each trajectory, stepped in this process.

    A task is whatever the environment takes: it has ``sample_tasks(n)`` and ``set_task(task)``, as
    learn2learn's and Meta-World's have, or `sample_task` and `set_task` are given here. Actions are
    clipped to the bounds of a Box before the environment gets them. Every reset gets a seed drawn
    from this object's generator, so that a run that is resumed sees the same.

    Needs nothing but the environment itself: ``pip install "fastmaml[rl]"`` brings gymnasium and
    MuJoCo.

    Args:
        make: makes one environment, without arguments.
        sample_task: a task, from a `torch.Generator`; None for the environment's own
            ``sample_tasks``, which then draws as it does.
        set_task: ``set_task(environment, task)``; None for the environment's own.
        horizon: steps of a trajectory; None for the environment's time limit.
        seed: of resets and tasks; tasks that the environment draws itself are other ones when a
            run is resumed.
        dtype, device: of what is seen and got.

    Raises:
        ValueError: no horizon, spaces other than Box and Discrete, no way to set a task, an
            environment of the old `gym` API.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        sample_task: Callable[[torch.Generator], Any] | None = None,
        set_task: Callable[[Any, Any], None] | None = None,
        horizon: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(seed)
        self.dtype, self.device = dtype, device
        self._make, self._sample_task, self._set_task = make, sample_task, set_task
        self._made = [make()]
        self._active: list[bool] = []
        self._seen = torch.zeros(0)
        first = self._made[0]
        self.horizon = _horizon(first, horizon)
        self.observation_size = _box(first, "observation_space").shape[0]
        space = first.action_space
        self.discrete = hasattr(space, "n")  # type: ignore[misc]  # of this object
        self.action_size = int(space.n) if self.discrete else _box(first, "action_space").shape[0]
        for name, given in (("sample_tasks", sample_task), ("set_task", set_task)):
            if given is None and not hasattr(first.unwrapped, name):
                raise ValueError(
                    f"the environment {type(first.unwrapped).__name__} has no {name}(): give it "
                    f"one, or give {name.removesuffix('s')}= here."
                )

    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Any:
        """A list of `n` tasks, as the environment takes them."""
        if self._sample_task is not None:
            return [self._sample_task(generator or self.generator) for _ in range(n)]
        return list(self._made[0].unwrapped.sample_tasks(n))

    def reset(self, tasks: Any, n: int) -> Tensor:
        """Set each task, and begin."""
        self._shape = len(tasks), n
        while len(self._made) < len(tasks) * n:
            self._made.append(self._make())
        seeds = torch.randint(_SEEDS, (len(tasks) * n,), generator=self.generator).tolist()
        seen = []
        for i, (environment, seed) in enumerate(zip(self._made, seeds, strict=False)):
            task = tasks[i // n]
            if self._set_task is not None:
                self._set_task(environment, task)
            else:
                environment.unwrapped.set_task(task)
            seen.append(_reset(environment, seed).to(self.dtype))
        self._active = [True] * len(seen)
        self._seen = torch.stack(seen).view(*self._shape, -1)
        return self._seen.to(self.device)

    def step(self, actions: Tensor) -> Step:
        """Let those that are not over act; the others stay as they were."""
        given = actions.detach().cpu().flatten(0, 1)
        seen, shape = self._seen.flatten(0, 1).clone(), self._shape
        rewards = torch.zeros(len(given), dtype=self.dtype)
        over = torch.zeros(2, len(given), dtype=torch.bool)
        for i, environment in enumerate(self._made[: len(given)]):
            if self._active[i]:
                now, rewards[i], over[0, i], over[1, i] = self._one(environment, given[i])
                seen[i], self._active[i] = now, not bool(over[:, i].any())
        self._seen = seen.view(*shape, -1)
        got = self._seen, *(x.view(shape) for x in (rewards, *over))
        return Step(*(x.to(self.device) for x in got))

    def _one(self, environment: Any, action: Tensor) -> tuple[Tensor, float, bool, bool]:
        if self.discrete:
            given: Any = int(action) + int(getattr(environment.action_space, "start", 0))
        else:
            space = environment.action_space
            given = action.numpy().clip(space.low, space.high).astype(space.dtype)
        result = environment.step(given)
        if not isinstance(result, tuple) or len(result) != 5:
            _refuse_old(environment, "step() returned 4 values in place of 5")
        seen, reward, terminated, truncated, _ = result
        return _tensor(seen), float(reward), bool(terminated), bool(truncated)


def _reset(environment: Any, seed: int) -> Tensor:
    try:
        result = environment.reset(seed=seed)
    except TypeError as error:
        if "seed" not in str(error):
            raise
        _refuse_old(environment, "reset() takes no seed")
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        _refuse_old(environment, "reset() returned no (observation, info)")
    return _tensor(result[0])


def _refuse_old(environment: Any, why: str) -> None:
    raise ValueError(
        f"the environment {type(environment).__name__} follows the old gym API ({why}): wrap it "
        "for gymnasium, for example with shimmy."
    )


def _tensor(seen: Any) -> Tensor:
    return torch.as_tensor(seen, dtype=torch.float64).flatten()


def _horizon(environment: Any, given: int | None) -> int:
    limit = getattr(getattr(environment, "spec", None), "max_episode_steps", None)
    if given is None and limit is None:
        raise ValueError("the environment has no time limit: give horizon=, steps of a trajectory.")
    return int(limit) if given is None else given  # type: ignore[arg-type]  # one of them


def _box(environment: Any, name: str) -> Any:
    """A space whose elements are vectors of numbers.

    Raises:
        ValueError: it is none.
    """
    space = getattr(environment, name)
    shape = getattr(space, "shape", None)
    if shape is None or len(shape) != 1 or not hasattr(space, "low"):
        raise ValueError(
            f"{name} is {space}: Box of one dimension, and Discrete for actions, are known; "
            "flatten others (gymnasium.wrappers.FlattenObservation)."
        )
    return space
