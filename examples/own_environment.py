"""A Gymnasium environment of one's own, whose tasks a policy learns to adapt to.

python examples/own_environment.py                        # trains here
fastmaml train rl --env examples.own_environment:make     # the same, with curves and checkpoints
"""

import gymnasium
import numpy as np
import torch

from fastmaml import rl


class Heater(gymnasium.Env):
    """Keep a room at a temperature that is not told: the reward says how far off it is."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def set_task(self, wanted: float) -> None:
        """What adaptation has to find out."""
        self.wanted = wanted

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begin near zero."""
        super().reset(seed=seed)
        self.temperature = self.np_random.normal(0.0, 0.1)
        return np.array([self.temperature]), {}

    def step(self, action: np.ndarray):
        """Heat, and lose some of it."""
        self.temperature += 0.3 * float(action[0]) - 0.05 * self.temperature
        return np.array([self.temperature]), -abs(self.temperature - self.wanted), False, False, {}


def make() -> rl.Environment:
    """What ``fastmaml train rl --env`` is given."""
    return rl.Gymnasium(
        Heater, sample_task=lambda g: 4 * torch.rand((), generator=g).item() - 2, horizon=20
    )


def main(iterations: int = 30, tasks: int = 10, trajectories: int = 10) -> None:
    """Train, and print what adaptation brings."""
    torch.manual_seed(0)
    environment = make()
    learner = rl.MetaPolicy(rl.GaussianPolicy(1, 1), lr=0.1)
    optimizer = torch.optim.Adam(learner.maml.parameters(), 3e-3)
    for iteration in range(iterations):
        wanted = environment.sample_tasks(tasks)
        before = rl.sample(environment, wanted, learner.act, trajectories)
        after = rl.sample(environment, wanted, learner.adapted(before), trajectories)
        learner.update([before], after, optimizer)
        gain = before.returns.mean().item(), after.returns.mean().item()
        print(f"{iteration:3d}  return {gain[0]:6.1f} before, {gain[1]:6.1f} after adaptation")


if __name__ == "__main__":
    main()
