"""The contract of an environment: all tasks and trajectories at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """What follows an action, every tensor ``[tasks, n, ...]``."""

    observations: Tensor
    """``[tasks, n, ...]``: what is seen then."""
    rewards: Tensor
    """``[tasks, n]``."""
    terminated: Tensor
    """``[tasks, n]`` bool: the trajectory is over, and nothing more is to be had."""
    truncated: Tensor
    """``[tasks, n]`` bool: it was cut where the task goes on."""


class Environment(ABC):
    """Many tasks alike, of which each trajectory is in one.

    Args:
        seed: of what it draws.

    Attributes:
        observation_size: numbers that are seen.
        action_size: numbers of an action; of discrete ones how many there are.
        discrete: whether an action is one of so many.
        horizon: steps of a trajectory: the return of so many is the objective.
        sparse: whether trajectories without any reward are to be expected.
        planar: whether what is seen are positions in a plane, and a task is one to go to.
        generator: what it draws from.
    """

    observation_size: int
    action_size: int
    horizon: int
    discrete: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    planar: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Any:
        """Descriptions of tasks: a tensor ``[n, ...]``, or a list where they are no numbers.

        Args:
            n: how many.
            generator: to draw from; None for the environment's own.
        """

    @abstractmethod
    def reset(self, tasks: Any, n: int) -> Tensor:
        """Begin `n` trajectories of each task; the observations ``[tasks, n, ...]``."""

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Let every trajectory act; those that are over may give anything.

        Args:
            actions: ``[tasks, n, ...]``, as they were sampled; bounds are the environment's to
                hold.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the next reset depends on, so that a resumed run goes on as it would."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.generator.set_state(state["generator"])
