"""Bodies that are to run: the MAML paper's half-cheetahs and ants, on MuJoCo."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from abc import abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fastmaml.rl.environments.base import Environment, Step


class Locomotion(Environment):
    """All tasks and trajectories step in one native call (`mujoco.rollout`), on several threads.

    Bodies are those of gymnasium, with its noise at the beginning. Needs
    ``pip install "fastmaml[rl]"``.

    Args:
        horizon: steps of a trajectory.
        threads: of the physics; None: one for each core.
        seed: of what it draws: tasks and beginnings.

    Raises:
        ImportError: mujoco or gymnasium is missing.
    """

    body: ClassVar[str]
    frames: ClassVar[int] = 5
    hidden: ClassVar[int]
    """How many of the first coordinates are not seen: where the body is."""
    control_cost: ClassVar[float]
    alive: ClassVar[tuple[float, float, float] | None] = None
    """What a step is worth by itself, and between which heights it goes on."""

    def __init__(self, horizon: int = 200, threads: int | None = None, seed: int = 0) -> None:
        super().__init__(seed)
        mujoco, rollout, path = _found(self.body)
        self.horizon = horizon
        self._model = body_model(mujoco, path)
        threads = os.cpu_count() or 1 if threads is None else threads
        self._datas = [mujoco.MjData(self._model) for _ in range(threads)]
        self._rollout = rollout.Rollout(nthread=threads)
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        start = torch.zeros(mujoco.mj_stateSize(self._model, kind), dtype=torch.float64)
        mujoco.mj_getState(self._model, self._datas[0], start.numpy(), kind)
        self._start, self._state = start, start.unsqueeze(0)
        self._positions = slice(1, 1 + self._model.nq)  # after the time
        self._velocities = slice(1 + self._model.nq, 1 + self._model.nq + self._model.nv)
        self._seconds = self.frames * float(self._model.opt.timestep)
        self.observation_size = self._model.nq + self._model.nv - self.hidden
        self.action_size = int(self._model.nu)
        self._tasks, self._shape = start, (0, 0)
        self._given = torch.zeros(0)

    @abstractmethod
    def gain(self, speed: Tensor, tasks: Tensor) -> Tensor:
        """``[tasks, n]``: what going at such a speed (metres a second, forward) is worth.

        Args:
            speed: ``[tasks, n]``.
            tasks: ``[tasks, 1]``.
        """

    def reset(self, tasks: Any, n: int) -> Tensor:
        """Begin near the body's rest."""
        self._tasks, self._given = tasks.double().cpu().view(-1, 1), tasks
        self._shape = len(tasks), n
        rows, drawn = len(tasks) * n, self.generator
        state = self._start.repeat(rows, 1)
        uniform = torch.rand(rows, self._model.nq, generator=drawn, dtype=torch.float64)
        state[:, self._positions] += 0.2 * uniform - 0.1
        normal = torch.randn(rows, self._model.nv, generator=drawn, dtype=torch.float64)
        state[:, self._velocities] += 0.1 * normal
        self._state = state
        return self._seen()

    def step(self, actions: Tensor) -> Step:
        """Hold the torques, clipped to 1, for some frames of the physics."""
        control = actions.detach().double().cpu().clamp(-1, 1).flatten(0, 1)
        held = control.unsqueeze(1).repeat(1, self.frames, 1)
        before = self._state[:, 1]
        states, _ = self._rollout.rollout(
            self._model, self._datas, self._state.numpy(), held.numpy()
        )
        self._state = torch.from_numpy(states[:, -1].copy())
        speed = ((self._state[:, 1] - before) / self._seconds).view(self._shape)
        cost = self.control_cost * control.square().sum(-1).view(self._shape)
        rewards = self.gain(speed, self._tasks) - cost
        over = torch.zeros(self._shape, dtype=torch.bool)
        if self.alive is not None:
            worth, low, high = self.alive
            height = self._state[:, 3].view(self._shape)
            rewards, over = rewards + worth, (height < low) | (height > high)
        over = over.to(self._given.device)
        return Step(self._seen(), rewards.to(self._given), over, torch.zeros_like(over))

    def _seen(self) -> Tensor:
        first = 1 + self.hidden
        seen = self._state[:, first : self._velocities.stop]
        return seen.to(self._given).view(*self._shape, -1)  # where the tasks are


class _HalfCheetah(Locomotion):
    body: ClassVar[str] = "half_cheetah"
    hidden: ClassVar[int] = 1
    control_cost: ClassVar[float] = 0.05


class _Ant(Locomotion):
    body: ClassVar[str] = "ant"
    hidden: ClassVar[int] = 2
    control_cost: ClassVar[float] = 0.005
    alive: ClassVar[tuple[float, float, float] | None] = (0.05, 0.2, 1.0)


class _Direction(Locomotion):
    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n]``: 1 for forward, -1 for backward."""
        return 2.0 * torch.randint(2, (n,), generator=generator or self.generator) - 1

    def gain(self, speed: Tensor, tasks: Tensor) -> Tensor:
        """The speed in the task's direction."""
        return speed * tasks


@final
class CheetahDir(_Direction, _HalfCheetah):
    """A half-cheetah that is to run forward or backward (Finn et al., 2017, section 5.3).

    The reward is the speed in that direction less 0.05 times the squared torques.
    """


@final
class CheetahVel(_HalfCheetah):
    """A half-cheetah that is to run at some speed from 0 to 2 (Finn et al., 2017, section 5.3).

    The reward is minus the distance from it, less 0.05 times the squared torques.
    """

    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n]`` speeds."""
        return 2 * torch.rand(n, generator=generator or self.generator)

    def gain(self, speed: Tensor, tasks: Tensor) -> Tensor:
        """Minus the distance from the task's speed."""
        return -(speed - tasks).abs()


@final
class AntDir(_Direction, _Ant):
    """An ant that is to run forward or backward; it is over where it falls or jumps.

    The reward is the speed in that direction, and 0.05, less 0.005 times the squared torques.
    Unlike in the paper, forces of contact cost nothing and are not seen.
    """


@final
class AntVel(_Ant):
    """An ant that is to run at some speed from 0 to 3; otherwise as `AntDir`.

    The reward is 1 less the distance from it, and 0.05, less 0.005 times the squared torques.
    """

    def sample_tasks(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n]`` speeds."""
        return 3 * torch.rand(n, generator=generator or self.generator)

    def gain(self, speed: Tensor, tasks: Tensor) -> Tensor:
        """One less the distance from the task's speed."""
        return 1 - (speed - tasks).abs()


def body_model(mujoco: Any, path: str) -> Any:
    """The body, with its mass as the file has it.

    MuJoCo says of files that set a mass that this is deprecated, into a file where one stands.
    """
    tree = ElementTree.parse(path).getroot()
    compiler = tree.find("compiler")
    mass = None if compiler is None else compiler.attrib.pop("settotalmass", None)
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(tree, encoding="unicode"))
    if mass is not None:
        mujoco.mj_setTotalmass(model, float(mass))
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def _found(body: str) -> tuple[Any, Any, str]:
    """mujoco, its module of rollouts, and the file of a body of gymnasium's."""
    try:
        import gymnasium
        import mujoco
        from mujoco import rollout
    except ImportError as error:
        raise ImportError(
            f"the {body.replace('_', '-')} needs mujoco and gymnasium ({error}): "
            'pip install "fastmaml[rl]"'
        ) from error
    folder = os.path.join(os.path.dirname(gymnasium.__file__), "envs", "mujoco", "assets")
    return mujoco, rollout, os.path.join(folder, f"{body}.xml")
