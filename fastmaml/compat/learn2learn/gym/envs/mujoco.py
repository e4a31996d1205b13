"""Bodies that are to run in a direction, with learn2learn's rewards, on gymnasium's MuJoCo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from fastmaml.compat.learn2learn.gym.envs.meta_env import MetaEnv
from fastmaml.rl.environments.locomotion import body_model


class _Running(MetaEnv, MujocoEnv, ABC):
    """A body of gymnasium's; a task is ``{"direction": ...}``."""

    body: ClassVar[str]
    noise: ClassVar[float] = 0.1
    metadata = {  # noqa: RUF012  # as gymnasium declares it
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]
    }

    def __init__(self, task: Any = None, **settings: Any) -> None:
        MetaEnv.__init__(self, task)
        MujocoEnv.__init__(self, f"{self.body}.xml", 5, None, **settings)
        seen = self._seen()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, seen.shape, seen.dtype.type)

    def sample_tasks(self, num_tasks: int) -> list[Any]:
        """Forward or backward, from numpy's global generator."""
        return [{"direction": x} for x in np.random.choice((-1.0, 1.0), num_tasks)]

    def set_task(self, task: Any) -> None:
        """Run to ``task["direction"]`` from now on: a number, or two."""
        super().set_task(task)
        self.goal_direction = task["direction"]

    def reset_model(self) -> Any:
        """Near the body's rest."""
        nq, nv, low = self.model.nq, self.model.nv, -self.noise
        positions = self.init_qpos + self.np_random.uniform(low, self.noise, nq)
        self.set_state(positions, self.init_qvel + self._nudge(nv))
        return self._seen()

    def step(self, action: Any) -> Any:
        """Five frames of the physics."""
        before = self._place()
        self.do_simulation(action, self.frame_skip)
        rewards = self._rewards(self._place() - before, action)
        info = {f"reward_{name}": value for name, value in rewards.items()}
        reward = float(sum(rewards.values()))
        return self._seen(), reward, self._over(), False, info | {"task": self.get_task()}

    def _place(self) -> Any:
        """Where in the plane it is."""
        return self.get_body_com("torso")[:2].copy()

    def _forward(self, moved: Any) -> float:
        """How far that is in the task's direction, which is a number or two."""
        direction = np.asarray(self.goal_direction, np.float64).reshape(-1)
        return float(direction @ moved[: len(direction)])

    @abstractmethod
    def _seen(self) -> Any:
        """What is observed."""

    @abstractmethod
    def _rewards(self, moved: Any, action: Any) -> dict[str, float]:
        """The parts of the reward, by name, for having gone so far in a step."""

    def _nudge(self, nv: int) -> Any:
        return 0.1 * self.np_random.standard_normal(nv)

    def _over(self) -> bool:
        return False

    def _initialize_simulation(self) -> tuple[Any, Any]:
        import mujoco

        model = body_model(mujoco, self.fullpath)
        model.vis.global_.offwidth, model.vis.global_.offheight = self.width, self.height
        return model, mujoco.MjData(model)


class _AnyDirection(_Running):
    def sample_tasks(self, num_tasks: int) -> list[Any]:
        """Directions in the plane, from numpy's global generator."""
        drawn = np.random.normal(size=(num_tasks, 2))
        return [{"direction": x / np.linalg.norm(x)} for x in drawn]


@final
class HalfCheetahForwardBackwardEnv(_Running):
    """The reward is the speed in that direction less 0.05 times the squared torques."""

    body: ClassVar[str] = "half_cheetah"

    def _place(self) -> Any:
        return self.data.qpos[:1].copy()

    def _seen(self) -> Any:
        return np.concatenate(
            [self.data.qpos[1:], self.data.qvel, self.get_body_com("torso")]
        ).astype(np.float32)

    def _rewards(self, moved: Any, action: Any) -> dict[str, float]:
        cost = 0.05 * float(np.square(action).sum())
        return {"forward": self._forward(moved) / self.dt, "ctrl": -cost}


class _Ant(_Running):
    body: ClassVar[str] = "ant"

    def _seen(self) -> Any:
        forces = np.clip(self.data.cfrc_ext, -1, 1).ravel()
        return np.concatenate([self.data.qpos[2:], self.data.qvel, forces])

    def _rewards(self, moved: Any, action: Any) -> dict[str, float]:
        return {
            "forward": self._forward(moved) / self.dt,
            "ctrl": -0.5 * float(np.square(action).sum()),
            "contact": -0.0005 * float(np.square(np.clip(self.data.cfrc_ext, -1, 1)).sum()),
            "survive": 1.0,
        }

    def _over(self) -> bool:
        state = self.state_vector()
        return not (bool(np.isfinite(state).all()) and 0.0 <= state[2] <= 1.0)


@final
class AntForwardBackwardEnv(_Ant):
    """Speed in that direction, and 1, less half the squared torques and the contacts' forces."""


@final
class AntDirectionEnv(_Ant, _AnyDirection):
    """As `AntForwardBackwardEnv`, in any direction of the plane."""


class _Humanoid(_Running):
    body: ClassVar[str] = "humanoid"
    noise: ClassVar[float] = 0.01

    def _place(self) -> Any:
        mass = self.model.body_mass
        return (mass @ self.data.xipos / mass.sum())[:2]

    def _seen(self) -> Any:
        data = self.data
        parts = data.qpos[2:], data.qvel, data.cinert, data.cvel, data.qfrc_actuator, data.cfrc_ext
        return np.concatenate([np.ravel(x) for x in parts])

    def _nudge(self, nv: int) -> Any:
        return self.np_random.uniform(-0.01, 0.01, nv)

    def _rewards(self, moved: Any, action: Any) -> dict[str, float]:
        return {
            "linvel": 0.25 * self._forward(moved) / self.model.opt.timestep,
            "quadctrl": -0.1 * float(np.square(self.data.ctrl).sum()),
            "impact": -min(0.5e-6 * float(np.square(self.data.cfrc_ext).sum()), 10.0),
            "alive": 5.0,
        }

    def _over(self) -> bool:
        return not 1.0 <= self.data.qpos[2] <= 2.0


@final
class HumanoidForwardBackwardEnv(_Humanoid):
    """Speed in that direction, and 5, less 0.1 times the squared torques and the impacts."""


@final
class HumanoidDirectionEnv(_Humanoid, _AnyDirection):
    """As `HumanoidForwardBackwardEnv`, in any direction of the plane."""
